"""`safepoint log`: the snapshots of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, metric, moment, now, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from safepoint.errors import CorruptionError
    from safepoint.repository import Repository, Snapshot

_TABLE_ROWS = 20
_COLUMN_GAP = 2


@command(
    short="List the snapshots of a run, newest first.",
    examples=["safepoint log runs/digits", "safepoint log runs/digits -n 0", "safepoint log runs/digits --json"],
    quiet="Print references only, one a line.",
)
@click.argument("run")
@click.option("-n", "--limit", type=click.IntRange(min=0), help="Show the newest N; 0 for all. [default: 20]")
@click.option("--pruned", is_flag=True, help="Show what was given up, too.")
def log(run: str, limit: int | None, pruned: bool, as_json: bool, quiet: bool) -> None:
    """List the snapshots of a run, the newest first.

    Above them the metrics from step to step, with the best that is still there, and the tags. Then each snapshot with
    its step, time, metrics, the bytes it holds and those it had to write (the rest was there already), and the
    references that name it. --json and --quiet list all unless --limit is given.
    """
    from safepoint.cli.output import emit, emit_lines
    from safepoint.cli.subject import find_run, reference_of

    repository = find_run(run)
    snapshots, damaged = repository.history()
    chosen = [s for s in reversed(snapshots.values()) if pruned or not s.pruned]
    total = len(chosen)
    if limit is None and not (as_json or quiet):
        limit = _TABLE_ROWS
    chosen = chosen[:limit] if limit else chosen
    if as_json:
        emit(_document(repository, chosen, snapshots, damaged))
    elif quiet:
        emit_lines([reference_of(repository, snapshot.number) for snapshot in chosen])
    else:
        _print(repository, chosen, total, snapshots, damaged)


def _document(
    repository: Repository,
    chosen: Sequence[Snapshot],
    snapshots: dict[int, Snapshot],
    damaged: dict[int, CorruptionError],
) -> dict[str, object]:
    from safepoint.cli.overview import documents
    from safepoint.cli.subject import reference_of, snapshot_document

    names, line = _references(snapshots), _newest_lineage(snapshots)
    return {
        "repository": repository.location,
        "id": repository.id,
        "num_snapshots": sum(not s.pruned for s in snapshots.values()),
        "num_pruned": sum(s.pruned for s in snapshots.values()),
        **documents(repository, snapshots),
        "snapshots": [
            {
                "reference": reference_of(repository, snapshot.number),
                **snapshot_document(snapshot),
                "named": names.get(snapshot.number, []),
                "lineage": snapshot.number in line,
            }
            for snapshot in chosen
        ],
        "damaged": [
            {"number": number, "file": error.file, "message": error.message} for number, error in damaged.items()
        ],
    }


def _print(
    repository: Repository,
    chosen: Sequence[Snapshot],
    total: int,
    snapshots: dict[int, Snapshot],
    damaged: dict[int, CorruptionError],
) -> None:
    from safepoint.cli.output import cell, headline, stderr, stdout, table
    from safepoint.cli.overview import bytes_in_words, logical_bytes, print_overview, stored_bytes

    console = stdout()
    kept = sum(not snapshot.pruned for snapshot in snapshots.values())
    held = bytes_in_words(logical_bytes(snapshots), stored_bytes(repository))
    console.print(headline((repository.location, "bold"), (count(kept, "snapshot"), ""), (held, "")))
    print_overview(console, snapshots)
    if not chosen:
        console.print(cell(_why_nothing(snapshots, damaged), "dim"))
    else:
        names, line, time = _references(snapshots), _newest_lineage(snapshots), now()
        fixed = [_fixed_cells(snapshot, line, time) for snapshot in chosen]
        named = [_name_cell(snapshot, names.get(snapshot.number, [])) for snapshot in chosen]
        shown, left_out = _fitting_metrics(chosen, console.width - _width(fixed, named))
        rows = table(
            "id", "step", "saved", *shown, "size", "new", "", right=("id", "step", *shown, "size", "new"), fold=("",)
        )
        for snapshot, cells, name in zip(chosen, fixed, named, strict=True):
            metrics = [cell(metric(snapshot.metrics[m])) if m in snapshot.metrics else cell("") for m in shown]
            rows.add_row(*cells[:3], *metrics, *cells[3:], name, style="" if snapshot.number in line else "dim")
        console.print()
        console.print(rows)
        notes = [f"{count(total - len(chosen), 'older one')} not shown (-n 0)"] if total > len(chosen) else []
        notes += [f"also measured: {', '.join(left_out)}"] if left_out else []
        notes += ["○ not in the lineage of the newest"] if any(s.number not in line for s in chosen) else []
        if notes:
            console.print()
        for note in notes:
            console.print(cell(note, "dim"))
    for error in damaged.values():
        stderr().print(cell(f"warning: {error.message}; safepoint verify {repository.location}", "yellow"))


def _why_nothing(snapshots: dict[int, Snapshot], damaged: dict[int, CorruptionError]) -> str:
    if damaged:
        return "no snapshot can be read"
    return "everything was pruned" if snapshots else "nothing was saved yet"


def _fixed_cells(snapshot: Snapshot, line: frozenset[int], time: object) -> list[Text]:
    from datetime import datetime

    from safepoint.cli.output import cell

    assert isinstance(time, datetime)
    return [
        cell(f"{'' if snapshot.number in line else '○ '}{snapshot.number}"),
        cell(str(snapshot.step), "bold cyan"),
        cell(moment(snapshot.time, time)),
        cell(size(snapshot.num_bytes)),
        cell(size(snapshot.written_bytes), "dim"),
    ]


def _name_cell(snapshot: Snapshot, names: Sequence[str]) -> Text:
    """Every word that may stand after the @, like git's decorations."""
    from rich.text import Text

    from safepoint.cli.output import cell

    words = [cell(name, "yellow" if name in snapshot.tags else "green") for name in names]
    words += [cell("✓", "green")] if snapshot.verified else []
    words += [cell("pruned", "red")] if snapshot.pruned else []
    return Text(" ", overflow="fold").join(words)


def _references(snapshots: dict[int, Snapshot]) -> dict[int, list[str]]:
    """Number → latest, best and tags that name it."""
    from safepoint.repository import first_metric, lineage, ranked

    line = lineage(snapshots)
    there = [snapshot for snapshot in line if not snapshot.pruned]
    names: dict[int, list[str]] = {}
    for snapshot in there[-1:]:
        names.setdefault(snapshot.number, []).append("latest")
    first = first_metric(line)
    for snapshot in ranked(there, first)[:1] if first is not None else []:
        names.setdefault(snapshot.number, []).append("best")
    for snapshot in snapshots.values():
        if snapshot.tags and not snapshot.pruned:
            names.setdefault(snapshot.number, []).extend(snapshot.tags)
    return names


def _newest_lineage(snapshots: dict[int, Snapshot]) -> frozenset[int]:
    from safepoint.repository import lineage

    return frozenset(snapshot.number for snapshot in lineage(snapshots))


def _fitting_metrics(chosen: Sequence[Snapshot], width: int) -> tuple[list[str], list[str]]:
    """The metrics that find room in `width` columns, in the order in which they were first seen, and the others."""
    names = list(dict.fromkeys(name for snapshot in reversed(chosen) for name in snapshot.metrics))
    shown: list[str] = []
    for name in names:
        need = max(len(name), *(len(metric(s.metrics[name])) for s in chosen if name in s.metrics)) + _COLUMN_GAP
        if need > width:
            break
        shown.append(name)
        width -= need
    return shown, names[len(shown) :]


def _width(fixed: Sequence[Sequence[Text]], named: Sequence[Text]) -> int:
    """Columns that the table needs beside metrics; the names may fold down to 12."""
    heads = ("id", "step", "saved", "size", "new")
    columns = [max(len(head), *(row[i].cell_len for row in fixed)) for i, head in enumerate(heads)]
    return sum(columns) + len(columns) * _COLUMN_GAP + min(20, max(name.cell_len for name in named)) + _COLUMN_GAP
