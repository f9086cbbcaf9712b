"""`safepoint bench`: how fast this disk is, and how fast a state of one's own size is saved and restored on it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from safepoint.cli.bench_ways import State, Way
    from safepoint.repository import Progress

_COLUMNS = ("save", "restore_cold", "restore_warm")
_SMALLEST = 10**6


def size_of(text: str) -> int:
    """`1.5GB`, `800MB`, or bytes, as a number."""
    short = text.upper().replace(" ", "").removesuffix("B")
    factor = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(short[-1:], 1)
    try:
        number = int(float(short.rstrip("KMGT")) * factor)
    except (ValueError, OverflowError):
        number = 0
    if number < _SMALLEST:
        raise click.BadParameter(f"{text!r} is no size of at least 1 MB: 1.5GB, 800MB")
    return number


@command(
    short="Measure this disk, and saves and restores on it.",
    examples=["safepoint bench", "safepoint bench /data --size 8GB", "safepoint bench --rounds 5 --json"],
    quiet="Print the seconds of a save, and nothing else.",
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path())
@click.option(
    "--size", "num_bytes", type=size_of, metavar="SIZE", default="1GB", show_default=True, help="Of the model's state."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Medians of so many.")
def bench(directory: Path, num_bytes: int, rounds: int, as_json: bool, quiet: bool) -> int:
    """Measure saves and restores in DIRECTORY, beside the raw disk and whatever else is installed.

    Writes a state of random numbers there, in turn with the raw disk, safetensors, NumPy and PyTorch (where they are
    installed), each made durable, and removes it again. Takes three times --size on the disk and about twice --size in
    memory. A cold restore comes from the disk, a warm one from the page cache.
    """
    from safepoint.cli.bench_ways import make_state, ours, peers, raw
    from safepoint.cli.machine import described
    from safepoint.cli.output import emit, emit_lines, progress_bar

    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="safepoint-bench-") as folder,
        progress_bar("bench", hidden=as_json or quiet) as progress,
    ):
        state, root = make_state(num_bytes), Path(folder)
        ways = [raw(root, state), ours(root, state), *peers(root, state)]
        total = sum(array.nbytes for array in state.values())
        rows = [_row(way, total) for way in ways]
        _measure(ways, rows, rounds, progress)
        stall = _stall(root, state)
    document: dict[str, Any] = {
        "directory": str(directory),
        "machine": described(),
        "num_bytes": total,
        "num_tensors": len(state),
        "rounds": rounds,
        "ways": [{key: _middle(value) for key, value in row.items()} for row in rows],
        **stall,
    }
    if as_json:
        emit(document)
    elif quiet:
        emit_lines([f"{document['ways'][1]['save_seconds']:.3f}"])
    else:
        _print(document)
    return 0


def _row(way: Way, num_bytes: int) -> dict[str, Any]:
    seconds: dict[str, Any] = {f"{column}_seconds": [] for column in _COLUMNS}
    return {"name": way.name, "num_bytes": num_bytes, **seconds, "peak_bytes": [], "checked": way.checked}


def _middle(value: Any) -> Any:
    return median(value) if isinstance(value, list) else value


def _measure(ways: list[Way], rows: list[dict[str, Any]], rounds: int, progress: Progress | None) -> None:
    """Every way in turn, so that all meet the same weather; nobody is always first."""
    from safepoint.cli.machine import forget, peak_bytes, reset_peak

    todo = rounds * len(ways) * rows[0]["num_bytes"]
    done = 0
    for number in range(rounds):
        for index in range(len(ways)):
            at = (index + number) % len(ways)
            way, row = ways[at], rows[at]
            held = reset_peak()
            row["save_seconds"].append(_seconds(way.save))
            forget(way.path)
            row["restore_cold_seconds"].append(_seconds(way.load))
            row["restore_warm_seconds"].append(_seconds(way.load) if way.name != "raw disk" else 0.0)
            row["peak_bytes"].append(max(peak_bytes() - held, 0))
            way.clear()
            done += row["num_bytes"]
            if progress is not None:
                progress(done, todo)


def _stall(root: Path, state: State) -> dict[str, float]:
    """How long training stands still in a background save, and in one `memcpy` of the state."""
    import numpy as np

    from safepoint.api.checkpoint import Checkpoint
    from safepoint.api.manager import CheckpointManager

    arrays = list(state.values())
    copied = _copy_seconds(arrays)
    with CheckpointManager(Checkpoint(state=state), root / "background", keep=[], random=False) as manager:
        stalls = []
        for _ in range(3):
            for array in arrays:
                np.add(array, 1, out=array)  # all of it is new
            handle = manager.save()
            assert handle is not None
            stalls.append(handle.stall_seconds)
            handle.result()
    return {"stall_seconds": median(stalls[1:]), "first_stall_seconds": stalls[0], "memcpy_seconds": copied}


def _copy_seconds(arrays: list[Any]) -> float:
    import numpy as np

    from safepoint.cli.machine import memcpy

    targets = [np.zeros_like(array) for array in arrays]
    return median(_seconds(lambda: memcpy(arrays, targets)) for _ in range(3))


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _print(document: dict[str, Any]) -> None:
    from safepoint.cli.output import cell, headline, stdout, table

    console = stdout()
    what = f"{size(document['num_bytes'])} in {document['num_tensors']:,} tensors"
    console.print(headline((document["directory"], "bold"), (what, ""), (f"{document['rounds']} rounds", "")))
    console.print(cell(document["machine"], "dim"))
    console.print()
    right = ("save", "GB/s", "cold", "warm", "memory")
    rows = table("", *right, "bytes checked", right=right)
    for way in document["ways"]:
        speed = way["num_bytes"] / way["save_seconds"] / 1e9
        warm = f"{way['restore_warm_seconds']:.2f} s" if way["restore_warm_seconds"] else ""
        rows.add_row(
            cell(way["name"], "bold" if way["name"] == "safepoint" else ""),
            cell(f"{way['save_seconds']:.2f} s"),
            cell(f"{speed:.2f}"),
            cell(f"{way['restore_cold_seconds']:.2f} s"),
            cell(warm),
            cell(size(way["peak_bytes"])),
            cell("yes" if way["checked"] else "no"),
        )
    console.print(rows)
    console.print()
    stall, copied = document["stall_seconds"], document["memcpy_seconds"]
    console.print(cell(f"a background save stops training for {stall:.3f} s; one memcpy takes {copied:.3f} s"))
