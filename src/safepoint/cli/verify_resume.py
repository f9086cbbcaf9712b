"""`safepoint verify-resume`: whether a script that is killed and resumed is the script that never stopped."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from safepoint.cli.command import command
from safepoint.cli.text import count
from safepoint.errors import MismatchError, SafepointError

if TYPE_CHECKING:
    from safepoint.cli.exactness.compare import Compared
    from safepoint.cli.exactness.findings import Finding
    from safepoint.cli.exactness.records import Kill
    from safepoint.cli.exactness.runs import OnProgress, Process


@command(
    short="Kill and resume your script; compare every bit.",
    examples=["safepoint verify-resume train.py", "safepoint verify-resume --kills 10 train.py --epochs 3"],
    quiet="Print nothing but findings.",
    script=True,
)
@click.option("--kills", type=click.IntRange(1), default=3, show_default=True, help="How often to kill it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments at which it is killed.")
@click.option("--ignore", multiple=True, metavar="GLOB", help="Names that may differ: metrics/seconds.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder for what the runs write; kept. By default a temporary one, kept if something differs.",
)
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def verify_resume(
    script: Path,
    arguments: tuple[str, ...],
    kills: int,
    seed: int,
    ignore: tuple[str, ...],
    directory: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run SCRIPT to its end; run it again, kill it with SIGKILL at random moments, resume it in new processes; compare.

    Every tensor, value, metric and random state of every save and resume must be equal, bit for bit. If not, exit code
    4, and what differs first is named, with what to do about it. Repositories and models of these runs are kept apart
    from yours. Train for few steps: the script runs twice.
    """
    folder = _folder(directory)
    started = time.perf_counter()
    with _progress(script, hidden=as_json or quiet) as show:
        result = _Verification(folder, [str(script), *arguments], kills, seed, ignore, show).run()
    document = {**result, "script": str(script), "seconds": round(time.perf_counter() - started, 1)}
    if document["exact"] and directory is None:
        shutil.rmtree(folder, ignore_errors=True)
        document["directory"] = None
    _tell(document, as_json=as_json, quiet=quiet)
    return 0 if document["exact"] else MismatchError.exit_code


Show = Callable[[str, int, int], None]
"""(words, saves done, saves in all): what a progress bar shows."""


@final
@dataclass(frozen=True, slots=True)
class _Verification:
    folder: Path
    command: Sequence[str]
    kills: int
    seed: int
    ignore: tuple[str, ...]
    show: Show

    def run(self) -> dict[str, Any]:
        """All of it; returns the document that `--json` prints."""
        from safepoint.cli.exactness.compare import Reference, compare
        from safepoint.cli.exactness.findings import causes, not_resuming, nothing_saved
        from safepoint.cli.exactness.runs import Runs, choose_kills

        runs = Runs(self.folder, self.command)
        alone = runs.alone("uninterrupted", self._showing("uninterrupted", 0))
        if alone.code != 0:
            raise SafepointError(
                f"{self.command[0]} failed by itself, with exit code {alone.code}",
                found=alone.last_words(),
                hint=f"all it said is in {alone.log}",
            )
        nothing = nothing_saved(alone)
        if nothing is not None:
            return self._document(alone, [], [], None, [nothing])
        kills = choose_kills(alone.saves, self.kills, self.seed)
        total = len(alone.saves)
        chain = runs.killed(kills, lambda n: self._showing("killed" if n < len(kills) else "resumed", total, n))
        reference = Reference(alone.moments, self.ignore)
        compared = compare(reference, [process.moments for process in chain])
        difference = compared.difference
        problem = not_resuming(alone, chain)
        findings: list[Finding] = []
        if problem is not None and (difference is None or difference.after is not None):
            findings = [problem]
        elif difference is not None:
            findings = causes(difference)
            if findings[0].kind == "unexplained":
                control = runs.alone("control", self._showing("uninterrupted again", total))
                again = compare(reference, [control.moments]).difference
                findings = findings if again is None else causes(again)
        return self._document(alone, kills, chain, compared, findings)

    def _showing(self, words: str, total: int, number: int | None = None) -> OnProgress:
        text = words if number is None else f"{words} (process {number + 1})"
        return lambda saves: self.show(text, saves, total)

    def _document(
        self,
        alone: Process,
        kills: Sequence[Kill],
        chain: Sequence[Process],
        compared: Compared | None,
        findings: Sequence[Finding],
    ) -> dict[str, Any]:
        difference = None if compared is None else compared.difference
        newest = [process.newest.get(0, -1) for process in chain]
        return {
            "exact": not findings,
            "steps": len(alone.saves),
            "kills": [{"step": k.step, "newest_snapshot": n} for k, n in zip(kills, newest, strict=False)],
            "compared": {
                "saves": 0 if compared is None else compared.saves,
                "digests": 0 if compared is None else compared.digests,
            },
            "findings": [
                {"kind": f.kind, "name": f.name, "step": f.step, "message": f.message, "hint": f.hint} for f in findings
            ],
            "differs": None
            if difference is None
            else {
                "step": difference.step,
                "resumed_at": difference.after,
                "names": {name: list(pair) for name, pair in difference.names.items()},
            },
            "directory": str(self.folder),
        }


def _folder(directory: Path | None) -> Path:
    from safepoint.errors import ExistsError, StoreError

    try:
        if directory is None:
            return Path(tempfile.mkdtemp(prefix="safepoint-verify-resume-"))
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ExistsError(f"{directory} is not empty", hint="choose another --directory")
    except SafepointError:
        raise
    except OSError as error:
        raise StoreError("cannot make a folder for the runs", error=error, hint="choose another --directory") from error
    return directory


def _tell(document: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from safepoint.cli.output import cell, emit, headline, stdout, table

    if as_json:
        emit(document)
        return
    if document["exact"] and quiet:
        return
    console = stdout()
    killed = ", ".join(str(kill["step"]) for kill in document["kills"])
    words = [count(document["steps"], "save"), f"killed at step {killed}" if killed else ""]
    if document["exact"]:
        compared = f"{document['compared']['digests']:,} digests equal"
        took = f"{document['seconds']:.0f} s"
        console.print(
            headline(
                ("✓ exact", "bold green"), (document["script"], "bold"), *((w, "") for w in [*words, compared, took])
            )
        )
        return
    console.print(headline(("✗ not exact", "bold red"), (document["script"], "bold"), *((w, "") for w in words)))
    for finding in document["findings"]:
        console.print()
        console.print(cell(finding["message"], "bold"))
        console.print(cell(f"  next: {finding['hint']}"))
    if document["differs"]:
        console.print()
        rows = table("differs first", "uninterrupted", "resumed", fold=("differs first", "uninterrupted", "resumed"))
        pairs = list(document["differs"]["names"].items())
        for name, (one, other) in pairs[:_ROWS]:
            rows.add_row(cell(name), cell(one), cell(other, "red"))
        console.print(rows)
        if len(pairs) > _ROWS:
            console.print(cell(f"and {count(len(pairs) - _ROWS, 'name')} more", "dim"))
    console.print()
    console.print(cell(f"everything that the runs wrote and said is in {document['directory']}", "dim"))


_ROWS = 8


@contextmanager
def _progress(script: Path, *, hidden: bool) -> Iterator[Show]:
    """A bar on stderr that goes away; nothing outside a terminal."""
    from safepoint.cli.output import stderr

    console = None if hidden else stderr()
    if console is None or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _words, _done, _total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.fields[words]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), words, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(script.name, total=None, words="starting")
        yield lambda words, done, total: bar.update(
            task, completed=done, total=total or None, words=f"{words}, {count(done, 'save')}"
        )
