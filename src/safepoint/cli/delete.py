"""`safepoint delete`: give one snapshot up."""

from __future__ import annotations

import click

from safepoint.cli.command import command, yes_option


@command(
    short="Give one snapshot up.",
    examples=["safepoint delete runs/digits@4200", "safepoint delete runs/digits@4200 --yes"],
    quiet="Print nothing.",
)
@click.argument("ref")
@yes_option
def delete(ref: str, yes: bool, as_json: bool, quiet: bool) -> None:
    """Give one snapshot up; `collect` then frees its space.

    Tagged snapshots, the newest and the newest verified one are refused; a damaged or lost one is named RUN@id:NUMBER.
    Without --yes, only says what would go.
    """
    from safepoint.cli.output import cell, emit, stdout
    from safepoint.cli.subject import find_damaged, find_snapshot, protected, reference_of, snapshot_document
    from safepoint.errors import UnsupportedError

    damaged = find_damaged(ref)
    if damaged is not None:
        repository, number = damaged
        what, document = f"snapshot {number}, which is damaged or lost,", None
    else:
        repository, snapshot = find_snapshot(ref)
        number, what, document = snapshot.number, f"snapshot {snapshot.number}, step {snapshot.step},", snapshot
        reason = protected(repository).get(number)
        if reason is not None:
            untag = f"safepoint untag {repository.location} {snapshot.tags[0]}" if snapshot.tags else None
            hint = "save another first" if reason.startswith("the newest") else untag
            raise UnsupportedError(f"snapshot {number} cannot be deleted: it is {reason}", hint=hint)
    if yes:
        repository.abandon(number) if damaged else repository.delete(f"id:{number}")
        document = repository.history()[0].get(number)
    if as_json:
        emit(
            {
                "reference": reference_of(repository, number),
                "dry_run": not yes,
                "snapshot": None if document is None else snapshot_document(document),
            }
        )
    elif not quiet:
        done = f"{what} is deleted; free its space: safepoint collect {repository.location}"
        stdout().print(cell(done if yes else f"{what} would be deleted; add --yes to do it"))
