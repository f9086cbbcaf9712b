"""`safepoint demo`: kill a training run, resume it, and show that nothing was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import click

from safepoint.cli.command import command
from safepoint.errors import SafepointError, UnsupportedError

_NEEDS = {"keras": ("tensorflow", "keras", "sklearn"), "torch": ("torch", "sklearn")}
_EXTRAS = {"keras": "keras,tensorflow,demo", "torch": "torch,demo"}
_TITLES = {"keras": "Keras on TensorFlow", "torch": "PyTorch"}


@command(
    short="Train, kill, resume and load a small network.",
    examples=["safepoint demo", "safepoint demo --framework torch --directory my-demo"],
    quiet="Print nothing but the last line.",
)
@click.option(
    "--framework", type=click.Choice(["keras", "torch"]), default="keras", show_default=True, help="What to train with."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("safepoint-demo"),
    show_default=True,
    help="A new folder for all of it; if it is taken, a number is put behind it.",
)
def demo(framework: Literal["keras", "torch"], directory: Path, as_json: bool, quiet: bool) -> int:
    """Train a digit classifier twice: once undisturbed, once killed with SIGKILL in the middle of an epoch and resumed.

    Everything happens in processes of its own. Afterwards every weight, optimizer moment and loss of the two runs is
    compared bit by bit, the finished model is saved, loaded in a new process and asked about digits it has never seen.
    Takes about half a minute.
    """
    from safepoint.cli.output import emit

    _check_installed(framework)
    folder = _new_folder(directory)
    demonstration = _Demonstration(framework, folder)
    started = time.perf_counter()
    with _progress(framework, folder, hidden=as_json or quiet) as show:
        document = demonstration.run(show)
    document["seconds"] = round(time.perf_counter() - started, 1)
    if as_json:
        emit(document)
    else:
        from safepoint.cli.demo_summary import print_summary

        print_summary(document, quiet=quiet)
    if document["equal"]:
        return 0
    raise SafepointError(
        "the resumed run is not the run that was never killed",
        expected=f"digest {document['digests']['reference']}",
        found=f"{document['difference']} differs first; digest {document['digests']['resumed']}",
        hint="please report this with the folder's content",
    )


Show = Callable[[str, int, int, str], None]
"""(stage, done, in all, words): what a progress bar shows."""


@final
@dataclass(frozen=True, slots=True)
class _Demonstration:
    framework: Literal["keras", "torch"]
    folder: Path

    def run(self, show: Show) -> dict[str, Any]:
        """All of it; returns the document that `--json` prints."""
        from safepoint.cli.demo_proof import compare
        from safepoint.cli.demo_runs import Processes, Training

        reference, run = self.folder / "reference", self.folder / "run"
        model = self.folder / "digits.model"
        script = f"{self.framework}_train.py"
        processes = Processes(self.folder)

        def watch(stage: str) -> Callable[[Training], None]:
            def on_step(training: Training) -> None:
                words = f"killed in epoch {training.epoch}" if training.killed else f"loss {training.loss:.4f}"
                show(stage, training.last + 1, training.steps, words)

            return on_step

        # Both at once: on two cores that takes no longer than one, and most of it is importing the framework.
        with ThreadPoolExecutor(2) as pool:
            try:
                for stage in ("undisturbed", "killed"):
                    show(stage, 0, 0, "starting")
                undisturbed = pool.submit(
                    processes.train, script, reference, log="reference", on_step=watch("undisturbed")
                )
                killed = processes.train(script, run, log="killed", on_step=watch("killed"), kill=True)
                newest = _newest_step(run)
                show("resumed", 0, 0, f"starting from step {newest}")
                resumed = processes.train(script, run, model, log="resumed", on_step=watch("resumed"))
                undisturbed.result()
                show("compared", 0, 0, "")
                proof = compare(reference, run)
                show("compared", 1, 1, "bit for bit equal" if proof.equal else "different")
                show("loaded", 0, 0, "starting")
                answer = processes.ask(f"{self.framework}_predict.py", model, log="loaded")
                show("loaded", 1, 1, f"{answer['right']} of {answer['held_out']} digits right")
            except BaseException:
                processes.end()
                raise
        stalls = sorted([*killed.stalls, *resumed.stalls])
        return {
            "framework": self.framework,
            "directory": str(self.folder),
            "steps": resumed.steps,
            "killed": {"step": killed.last, "epoch": killed.epoch, "batch": killed.batch, "signal": "SIGKILL"},
            "resumed": {"newest_snapshot": newest, "first_step": resumed.first, "repeated": killed.last - newest},
            "equal": proof.equal,
            "compared": {"tensors": proof.num_tensors, "values": proof.num_values},
            "digests": {"reference": proof.digests[0], "resumed": proof.digests[1]},
            "difference": proof.difference,
            "run": {"path": str(run), **_sizes(run)},
            "model": {
                "path": str(model),
                "bytes": model.stat().st_size,
                "right": answer["right"],
                "held_out": answer["held_out"],
                "accuracy": answer["right"] / answer["held_out"],
                "same_predictions": answer["predictions"] == resumed.predictions,
            },
            "stall": {
                "saves": len(stalls),
                "median_seconds": stalls[len(stalls) // 2],
                "longest_seconds": stalls[-1],
                "total_seconds": sum(stalls),
            },
        }


def _check_installed(framework: str) -> None:
    """Whether what the scripts import is there; nothing is imported to find out."""
    import importlib.util

    missing = [name for name in _NEEDS[framework] if importlib.util.find_spec(name) is None]
    if missing:
        names = ["scikit-learn" if name == "sklearn" else name for name in missing]
        raise UnsupportedError(
            f"the demo needs {' and '.join(names)}, which {'is' if len(names) == 1 else 'are'} not installed",
            hint=f"pip install 'safepoint[{_EXTRAS[framework]}]'",
        )


def _new_folder(directory: Path) -> Path:
    """`directory`, or the first of `directory-2`, `directory-3`, ... that is not there: nothing is overwritten."""
    from safepoint.errors import StoreError

    number = 1
    while True:
        folder = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        try:
            if not (folder.is_dir() and not any(folder.iterdir())):
                folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StoreError(
                f"cannot make the folder {folder}", error=error, hint="choose another --directory"
            ) from error


def _newest_step(run: Path) -> int:
    from safepoint.repository import Repository

    return Repository(run).resolve("latest").step


def _sizes(run: Path) -> dict[str, int]:
    """What a run keeps: snapshots, bytes they hold, bytes on disk."""
    from safepoint.repository import Repository

    snapshots = Repository(run).snapshots
    stored = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    return {"snapshots": len(snapshots), "num_bytes": sum(s.num_bytes for s in snapshots), "stored_bytes": stored}


_STAGES = {
    "undisturbed": "train undisturbed",
    "killed": "train again, and kill it",
    "resumed": "resume in a new process",
    "compared": "compare the two runs",
    "loaded": "load in a new process",
}


@contextmanager
def _progress(framework: str, folder: Path, *, hidden: bool) -> Iterator[Show]:
    """Bars in a terminal; elsewhere a line on stderr for each thing done."""
    if hidden:
        yield lambda _stage, _done, _total, _words: None
        return
    from safepoint.cli.output import cell, headline, stderr

    console = stderr()
    console.print(headline(("safepoint demo", "bold"), (_TITLES[framework], ""), (f"into {folder}", "")))
    console.print()
    if not console.is_terminal or console.is_dumb_terminal:
        said: set[str] = set()

        def line(stage: str, done: int, total: int, words: str) -> None:
            told = f"{_STAGES[stage]}: {words}" if words else _STAGES[stage]
            if (done == total or words.startswith("killed")) and told not in said:
                said.add(told)
                console.print(cell(told))

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[sign]}"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),  # moves to and fro while the framework is being imported
        TextColumn("{task.fields[count]:>7}"),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {
            stage: bars.add_task(title.ljust(24), total=None, visible=False, sign=" ", count="", words="")
            for stage, title in _STAGES.items()
        }

        def show(stage: str, done: int, total: int, words: str) -> None:
            killed = words.startswith("killed")
            sign = "[red]✗[/]" if killed else "[green]✓[/]" if total and done == total else " "
            count = f"{done}/{total}" if total > 1 else ""
            bars.update(
                tasks[stage], completed=done, total=total or None, visible=True, sign=sign, count=count, words=words
            )

        yield show
