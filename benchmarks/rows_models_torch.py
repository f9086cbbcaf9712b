"""Rows of whole PyTorch models: saved and loaded as one file, beside torch.save and torch.export.save."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peers import sync
from results import Row
from state import HIDDEN, remember, seconds

import safepoint

# Each load is the first of a new process, as a user's is: later ones in the same process get memory that the allocator
# kept, and no page faults.
_CHILD = """
import sys, time
import torch, safepoint
how, path, small = sys.argv[1:]
load = {
    "class": safepoint.load_model,
    "mapped": lambda file: safepoint.load_model(file, mmap=True),
    "pickle": lambda file: torch.load(file, weights_only=False),
    "graph": lambda file: safepoint.load_model(file, form="graph"),
    "export": lambda file: torch.export.load(file).module(),
}[how]
load(small)  # imports, first use
started = time.perf_counter()
load(path)
print(time.perf_counter() - started)
"""


def whole_models(root: Path, rounds: int, blocks: int) -> list[Row]:
    """A transformer encoder of GPT-2-small's width: by its class, by its graph, mapped; 340 MB with 12 blocks.

    Tracing is most of saving a graph, here and for torch.export: each save traces once.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(HIDDEN, 12, 4 * HIDDEN, batch_first=True)
    model = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False).eval()
    x = torch.randn(2, 16, HIDDEN)
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    ours, graph = root / "ours.safetensors", root / "graph.safetensors"
    pickled, exported = root / "pickled.pt", root / "exported.pt2"

    def pickle() -> None:
        torch.save(model, pickled)
        sync(pickled)

    def export() -> None:
        torch.export.save(torch.export.export(model, (x,)), exported)
        sync(exported)

    saves = _times(
        rounds,
        {
            "class": lambda: safepoint.save_model(model, ours),
            "pickle": pickle,
            "graph": lambda: safepoint.save_model(model, graph, example_inputs=(x,)),
            "export": export,
        },
    )
    files = {"class": ours, "mapped": ours, "pickle": pickled, "graph": graph, "export": exported}
    for file in files.values():
        remember(file)
    loads = _loads(rounds, files, _make_small(root))
    with torch.no_grad():
        loaded = safepoint.load_model(graph, form="graph")
        module = torch.export.load(exported).module()
        calls = _times(rounds, {"graph": lambda: loaded(x), "export": lambda: module(x), "model": lambda: model(x)})
    return [
        Row("whole PyTorch model, save by class", saves["class"], saves["pickle"], None, note="torch.save + fsync"),
        Row("the same with its graph", saves["graph"], saves["export"], None, note="torch.export.save + fsync"),
        Row(
            "whole PyTorch model, load by class, verified",
            loads["class"],
            loads["pickle"],
            None,
            note="torch.load, unverified",
            num_bytes=num_bytes,
        ),
        Row("the same with mmap=True", loads["mapped"], loads["pickle"], None, num_bytes=num_bytes),
        Row("load by graph, verified", loads["graph"], loads["export"], None, note="torch.export.load"),
        Row("a call of the graph", calls["graph"], calls["export"], None, note="of torch.export's module"),
        Row("a call of the graph, beside the model", calls["graph"], calls["model"], None, note="of the model"),
    ]


def _make_small(root: Path) -> dict[str, Path]:
    """A model of each form, to be loaded first."""
    import torch
    from torch import nn

    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval(), torch.randn(2, 4)
    ours, pickled, exported = root / "small.safetensors", root / "small.pt", root / "small.pt2"
    safepoint.save_model(model, ours, example_inputs=(x,))
    torch.save(model, pickled)
    torch.export.save(torch.export.export(model, (x,)), exported)
    return {"class": ours, "mapped": ours, "graph": ours, "pickle": pickled, "export": exported}


def _loads(rounds: int, files: Mapping[str, Path], small: Mapping[str, Path]) -> dict[str, list[float]]:
    """How long each load takes in a process of its own, interleaved."""
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            command = [sys.executable, "-W", "ignore", "-c", _CHILD, name, str(file), str(small[name])]
            found[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return found


def _times(rounds: int, what: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """How long each takes, interleaved, after a round in which modules are imported."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds + 1):
        print(f"   round {number}", file=sys.stderr)
        for name, function in what.items():
            found[name].append(seconds(function))
    return {name: times[1:] for name, times in found.items()}
