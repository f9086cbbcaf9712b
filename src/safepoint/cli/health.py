"""`safepoint health`: where a run went wrong first, what shows it, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import count

if TYPE_CHECKING:
    from rich.table import Table

    from safepoint.api.health import Finding, Health
    from safepoint.repository import Repository

SOMETHING_FOUND = 3
"""Exit code."""

_MOST_NAMES = 4


@command(
    short="Say where a run went wrong first, with the evidence.",
    examples=["safepoint health runs/digits", "safepoint health runs/digits --json"],
    quiet="Print only what was found: a kind and a reference, one a line.",
)
@click.argument("run")
@click.option("--snapshots", type=click.IntRange(min=2), help="Look at N at most, evenly chosen. [default: all]")
def health(run: str, snapshots: int | None, as_json: bool, quiet: bool) -> int:
    """Say where a run went wrong first: which step, what shows it, the last good snapshot, what to do next.

    \b
    not finite       NaN or infinity in a tensor; a metric that ends as NaN
    exploding        a matrix that grows ten times from one snapshot to the next
    dead units       rows or columns that become zero and stay so
    standing still   a weight with moments that no longer moves while others do
    moments at zero  an optimizer that got no gradient, or began anew
    duplicates       two layers that became the same

    All weights and optimizer moments of the newest lineage are read once; what was worked out is kept in the run's
    folder `derived/`. Exit code 0 if nothing was found, 3 if something was.
    """  # noqa: D301 — click's mark for lines that stay
    from safepoint.api.health import examine
    from safepoint.cli.output import emit, emit_lines, progress_bar
    from safepoint.cli.subject import find_run, reference_of

    repository = find_run(run)
    with progress_bar("read", hidden=as_json or quiet) as progress:
        found = examine(repository, at_most=snapshots, progress=progress)
    if as_json:
        emit(_document(repository, found))
    elif quiet:
        emit_lines([f"{f.kind}: {reference_of(repository, f.snapshot.number)}" for f in found.findings])
    else:
        _print(repository, found)
    return SOMETHING_FOUND if found.findings else 0


def _document(repository: Repository, found: Health) -> dict[str, Any]:
    from safepoint.cli.subject import reference_of

    def place(number: int, step: int) -> dict[str, Any]:
        return {"reference": reference_of(repository, number), "step": step}

    return {
        "repository": repository.location,
        "healthy": not found.findings,
        "num_snapshots": len(found.snapshots),
        "num_weights": found.num_weights,
        "num_moments": found.num_moments,
        "findings": [
            {
                "kind": finding.kind,
                "first": place(finding.snapshot.number, finding.snapshot.step),
                "last_good": None if (good := finding.last_good) is None else place(good.number, good.step),
                "evidence": finding.evidence,
                "advice": finding.advice,
            }
            for finding in found.findings
        ],
        "notes": list(found.notes),
    }


def _print(repository: Repository, found: Health) -> None:
    from safepoint.cli.output import cell, headline, stdout

    console = stdout()
    first, last = found.snapshots[0].step, found.snapshots[-1].step
    verdict = ("✓ healthy", "bold green")
    if found.findings:
        verdict = (f"✗ {count(len(found.findings), 'finding')}", "bold red")
    looked = f"{count(len(found.snapshots), 'snapshot')}, steps {first} to {last}"
    read = f"{count(found.num_weights, 'weight')}, {count(found.num_moments, 'moment')}"
    console.print(headline(verdict, (repository.location, "bold"), (looked, ""), (read, "")))
    for finding in found.findings:
        console.print()
        console.print(headline((f"step {finding.snapshot.step}", "bold cyan"), (finding.kind, "bold red")))
        console.print(_facts(repository, finding))
    if found.notes:
        console.print()
    for note in found.notes:
        console.print(cell(note, "dim"))


def _facts(repository: Repository, finding: Finding) -> Table:
    from rich.table import Table

    from safepoint.cli.output import cell
    from safepoint.cli.subject import reference_of

    good = finding.last_good
    seen = [f"{name}: {words}" for name, words in finding.evidence.items()]
    more = [f"and {len(seen) - _MOST_NAMES} more"] if len(seen) > _MOST_NAMES else []
    back = "there is none before" if good is None else f"step {good.step}, {reference_of(repository, good.number)}"
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for word, lines in (("seen", seen[:_MOST_NAMES] + more), ("last good", [back]), ("next", [finding.advice])):
        for place, line in enumerate(lines):
            rows.add_row(cell("" if place else word, "dim"), cell(line))
    return rows
