"""Makes the README's pictures: trains a small network on digits, then looks at the run as its user would.

`make pictures` runs it; what it makes is committed.
"""

from __future__ import annotations

import html
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits

import safepoint
from safepoint.cli import output
from safepoint.cli.program import run

HERE = Path(__file__).resolve().parent
WIDTH = 88
RUN = "runs/digits"

COMMANDS = {
    "log": ["log", RUN, "-n", "8"],
    "show": ["show", f"{RUN}@best:accuracy", "model/*", "--stats"],
    "diff": ["diff", "base.safetensors", "tuned.safetensors"],
    "health": ["health", "runs/diverged"],
}
PLOTS = {
    "metrics.svg": ["plot", RUN, "--kind", "metrics"],
    "weights.svg": ["plot", RUN, "--kind", "weights", "--layers", "model/*.weight"],
}

# Rich's own page names a server for its font; this one takes what the reader's machine has.
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


_LETTER = 12.2  # the width of one, as Rich lays them out
_TEXT = re.compile(
    r'<text class="(?P<style>[\w-]+)" x="(?P<x>[\d.]+)" y="(?P<y>[\d.]+)"[^>]*>(?P<content>[^<]*)</text>'
)


def train(path: str, *, steps: int, jump: int | None = None) -> torch.nn.Module:
    """A small convolutional network, saved at every tenth step; at step `jump` its learning rate goes wild."""
    torch.manual_seed(0)
    x, y = data()
    model = torch.nn.Sequential()
    for name, layer in {
        "conv1": torch.nn.Conv2d(1, 16, 3, padding=1), "act1": torch.nn.ReLU(), "pool1": torch.nn.MaxPool2d(2),
        "conv2": torch.nn.Conv2d(16, 32, 3, padding=1), "act2": torch.nn.ReLU(), "pool2": torch.nn.MaxPool2d(2),
        "flat": torch.nn.Flatten(), "hidden": torch.nn.Linear(128, 64), "act3": torch.nn.ReLU(),
        "head": torch.nn.Linear(64, 10),
    }.items():  # fmt: skip
        model.add_module(name, layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(model=model, optimizer=optimizer),
        path,
        save=[safepoint.EverySteps(10)],
        keep=[safepoint.Latest(5), safepoint.Best(3, "accuracy"), safepoint.EveryNth(20)],
    )
    with manager:
        for step in manager.steps(steps):
            optimizer.param_groups[0]["lr"] = 50.0 if jump is not None and step >= jump else 2e-3
            batch = torch.randint(0, 1500, (64,))
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean()
            manager.save(metrics={"loss": loss, "accuracy": accuracy})
    return model


def tune(model: torch.nn.Module) -> None:
    """Train on, on mirrored digits, with the first layer as it is."""
    x, y = data()
    model.conv1.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0)
    for _ in range(30):
        batch = torch.randint(0, 1500, (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch].flip(-1)), y[batch]).backward()
        optimizer.step()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 8 by 8, and what they show."""
    digits = load_digits()
    return torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)


def screenshot(name: str, arguments: list[str]) -> None:
    """What a command prints, as a terminal shows it."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    console.print(f"$ safepoint {' '.join(arguments)}", style="bold")
    console.print()
    real, output.stdout = output.stdout, lambda: console
    try:
        run(arguments)
    finally:
        output.stdout = real
    text = console.export_svg(title="", code_format=_SVG, unique_id=name)
    (HERE / f"{name}.svg").write_text(_TEXT.sub(_word_by_word, text), encoding="utf-8")


def _word_by_word(found: re.Match[str]) -> str:
    """Each word where it belongs: viewers differ in the width of a letter, and in what spaces are worth."""
    start, content = float(found["x"]), html.unescape(found["content"])
    return "".join(
        f'<text class="{found["style"]}" x="{start + word.start() * _LETTER:g}" y="{found["y"]}" '
        f'textLength="{len(word[0]) * _LETTER:g}">{html.escape(word[0])}</text>'
        for word in re.finditer(r"\S+", content)
    )


def main() -> int:
    """Make all of them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = train(RUN, steps=300)
        safepoint.save_model(model, "base.safetensors")
        tune(model)
        safepoint.save_model(model, "tuned.safetensors")
        train("runs/diverged", steps=120, jump=80)
        safepoint.Repository(RUN).tag("best:accuracy", "v1")
        for name, arguments in COMMANDS.items():
            screenshot(name, arguments)
        for name, arguments in PLOTS.items():
            if run([*arguments, "-o", str(HERE / name), "--force"]):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
