"""`safepoint prune`: give up what no policy keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from safepoint.cli.command import command, yes_option
from safepoint.cli.text import count, moment, now, size

if TYPE_CHECKING:
    from safepoint.repository import Repository, Retention, Snapshot


def _bests(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[int, str | None]]:
    """`N:METRIC`, or `N` for the first metric that was measured."""
    found = []
    for value in values:
        number, _, name = value.partition(":")
        if not (number.isascii() and number.isdigit() and int(number)):
            expected = f"{value!r}: expected a number of snapshots and a metric, like 3:val_loss"
            raise click.BadParameter(expected, context, parameter)
        found.append((int(number), name or None))
    return found


_POSITIVE = click.IntRange(min=1)


@command(
    short="Give up the snapshots that no --keep option keeps.",
    examples=[
        "safepoint prune runs/digits --keep-latest 5 --keep-best 1:val_loss",
        "safepoint prune runs/digits --keep-every 1000 --keep-within 24 --yes",
    ],
    quiet="Print references of what goes, one a line.",
)
@click.argument("run")
@click.option("--keep-latest", type=_POSITIVE, metavar="N", help="Keep the newest N.")
@click.option("--keep-best", callback=_bests, multiple=True, metavar="N[:METRIC]", help="Keep the best N by a metric.")
@click.option("--keep-every", type=_POSITIVE, metavar="STEPS", help="Keep one of every STEPS steps.")
@click.option(
    "--keep-within", type=click.FloatRange(min=0, min_open=True), metavar="HOURS", help="Keep the last HOURS."
)
@yes_option
def prune(
    run: str,
    keep_latest: int | None,
    keep_best: list[tuple[int, str | None]],
    keep_every: int | None,
    keep_within: float | None,
    yes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Give up the snapshots that none of the --keep options keeps, and say why each stays or goes.

    Looks at the lineage of the newest snapshot. Tagged ones, the newest and the newest verified one always stay.
    Without --yes, only says what would go; `collect` then frees the space.
    """
    from safepoint.api.policies import Best, EveryNth, Latest, Within
    from safepoint.cli.output import emit, emit_lines
    from safepoint.cli.subject import find_run, reference_of, snapshot_document

    policies: dict[str, Retention] = {}
    if keep_latest is not None:
        policies[f"latest {keep_latest}"] = Latest(keep_latest)
    for number, name in keep_best:
        policies[f"best {number}" + (f" by {name}" if name else "")] = Best(number, name)
    if keep_every is not None:
        policies[f"every {keep_every}"] = EveryNth(keep_every)
    if keep_within is not None:
        policies[f"within {keep_within:g} h"] = Within(keep_within)
    if not policies:
        raise click.UsageError("say what to keep: --keep-latest, --keep-best, --keep-every or --keep-within")
    repository = find_run(run)
    line = _unpruned(repository)
    reasons = _reasons(repository, line, policies)
    gone = {snapshot.number for snapshot in repository.prune(list(policies.values()), dry_run=not yes)}
    if as_json:
        emit(
            {
                "repository": repository.location,
                "dry_run": not yes,
                "pruned": [snapshot_document(s) for s in line if s.number in gone],
                "kept": [{**snapshot_document(s), "reasons": reasons[s.number]} for s in line if s.number not in gone],
            }
        )
    elif quiet:
        emit_lines([reference_of(repository, s.number) for s in line if s.number in gone])
    else:
        _print(repository, line, reasons, gone, done=yes)


def _unpruned(repository: Repository) -> list[Snapshot]:
    from safepoint.repository import lineage

    return [snapshot for snapshot in lineage(repository.history()[0]) if not snapshot.pruned]


def _reasons(repository: Repository, line: list[Snapshot], policies: dict[str, Retention]) -> dict[int, list[str]]:
    """Why each snapshot stays; an empty list: it does not."""
    from safepoint.cli.subject import protected

    always, time = protected(repository), now()
    reasons = {snapshot.number: [always[snapshot.number]] if snapshot.number in always else [] for snapshot in line}
    for words, policy in policies.items():
        for number in policy.keep(line, time):
            reasons[number].append(words)
    return reasons


def _print(
    repository: Repository, line: list[Snapshot], reasons: dict[int, list[str]], gone: set[int], *, done: bool
) -> None:
    from safepoint.cli.output import cell, stdout, table

    console, time = stdout(), now()
    rows = table("id", "step", "saved", "size", "", "why", right=("id", "step", "size"), fold=("why",))
    for snapshot in reversed(line):
        goes = snapshot.number in gone
        rows.add_row(
            cell(str(snapshot.number)),
            cell(str(snapshot.step), "bold cyan"),
            cell(moment(snapshot.time, time)),
            cell(size(snapshot.num_bytes)),
            cell("prune", "red") if goes else cell("keep", "green"),
            cell("nothing keeps it" if goes else ", ".join(reasons[snapshot.number])),
        )
    console.print(rows)
    console.print()
    if not gone:
        console.print(cell("nothing to prune"))
    elif done:
        console.print(
            cell(f"{count(len(gone), 'snapshot')} pruned; free the space: safepoint collect {repository.location}")
        )
    else:
        console.print(cell(f"{count(len(gone), 'snapshot')} of {len(line)} would be pruned; add --yes to do it"))
