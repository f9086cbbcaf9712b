"""`safepoint import`: a folder of old checkpoints, of whatever framework, as the history of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, metric, moment, now, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safepoint.api.importing import Candidate, Plan
    from safepoint.repository import Snapshot

_MOST_METRICS = 3


@command(
    short="Take old checkpoints into a run, as its history.",
    examples=[
        "safepoint import outputs/ --into runs/bert --dry-run",
        "safepoint import outputs/ --into runs/bert",
        "safepoint import lightning/*.ckpt --into runs/net --select model",
    ],
    quiet="Print references only, one a line.",
)
@click.argument("files", nargs=-1, required=True)
@click.option("--into", required=True, metavar="RUN", help="The repository; a new one, or one that was imported.")
@click.option("--select", multiple=True, metavar="GLOB", help="Only these names; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def import_(
    files: tuple[str, ...], into: str, select: tuple[str, ...], dry_run: bool, as_json: bool, quiet: bool
) -> int:
    """Take FILES, checkpoints or folders of them, into RUN: each a snapshot, in the order of their steps.

    Hugging Face's checkpoint-500, Lightning's epoch=3-step=1200.ckpt, TensorFlow's model.ckpt-17, and any file that
    `safepoint show` reads with a step in it or a number in its name. Steps, metrics and times are taken from
    trainer_state.json, the file, or its name. What did not change from one to the next is stored once.

    Run it again to import what is new. A checkpoint that cannot be read is named and left out; the exit code is then
    that of its error, and all others are imported.
    """
    from safepoint.api.importing import carry_out, plan
    from safepoint.cli.output import emit, emit_lines, progress_bar
    from safepoint.cli.subject import reference_of
    from safepoint.repository import Repository

    planned = plan(files, into, patterns=select)
    done: list[tuple[Candidate, Snapshot]] = []
    if not dry_run and planned.new:
        with progress_bar("import", hidden=as_json or quiet) as progress:
            done, planned = carry_out(planned, progress=progress)
    if as_json:
        emit(_document(planned, done, dry_run=dry_run))
    elif quiet:
        emit_lines([reference_of(Repository(into), snapshot.number) for _, snapshot in done])
    else:
        _print(planned, done, dry_run=dry_run)
    return next((item.error.exit_code for item in planned.skipped if item.error is not None), 0)


def _document(planned: Plan, done: Sequence[tuple[Candidate, Snapshot]], *, dry_run: bool) -> dict[str, Any]:
    from safepoint.cli.subject import as_json

    def of(candidate: Candidate) -> dict[str, Any]:
        return {
            "path": str(candidate.old.path),
            "format": candidate.kind,
            "step": candidate.step,
            "step_from": candidate.facts.told_by,
            "metrics": as_json(dict(candidate.facts.metrics)),
            "time": candidate.facts.time.isoformat(),
            "num_tensors": candidate.num_tensors,
            "num_bytes": candidate.num_bytes,
        }

    imported = [{**of(c), "number": s.number, "written_bytes": s.written_bytes} for c, s in done]
    return {
        "repository": planned.into,
        "dry_run": dry_run,
        "planned": [of(candidate) for candidate in planned.new] if dry_run else [],
        "imported": imported,
        "there": [of(candidate) for candidate in planned.there],
        "skipped": [
            {"path": str(item.path), "why": item.why, "code": None if item.error is None else item.error.code}
            for item in planned.skipped
        ],
    }


def _print(planned: Plan, done: Sequence[tuple[Candidate, Snapshot]], *, dry_run: bool) -> None:
    from safepoint.cli.output import cell, headline, stderr, stdout, table

    console = stdout()
    rows = planned.new if dry_run else [candidate for candidate, _ in done]
    written = {candidate.old.path: size(snapshot.written_bytes) for candidate, snapshot in done}
    what = f"{count(len(rows), 'checkpoint')} {'would be imported' if dry_run else 'imported'}"
    there = f"{len(planned.there):,} there already" if planned.there else ""
    console.print(headline((planned.into, "bold"), (what, "bold cyan"), (there, "")))
    if rows:
        last = "tensors" if dry_run else "new"
        grid = table(
            "step", "from", "saved", "size", last, "metrics", right=("step", "size", last), fold=("from", "metrics")
        )
        for item in rows:
            metrics = [f"{name} {metric(value)}" for name, value in item.facts.metrics.items()]
            more = ", ..." if len(metrics) > _MOST_METRICS else ""
            new = f"{item.num_tensors:,}" if dry_run else written[item.old.path]
            cells = [item.old.name, moment(item.facts.time, now()), size(item.num_bytes), new]
            grid.add_row(
                cell(str(item.step), "bold cyan"), *map(cell, cells), cell(", ".join(metrics[:_MOST_METRICS]) + more)
            )
        console.print()
        console.print(grid)
    for left in planned.skipped:
        word, style = ("left out", "yellow") if left.error is None else ("cannot be read", "red")
        stderr().print(cell(f"{word}: {left.path}: {left.why}", style))
