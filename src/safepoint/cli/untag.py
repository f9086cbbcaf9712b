"""`safepoint untag`: take a name away."""

from __future__ import annotations

import click

from safepoint.cli.command import command


@command(short="Take a tag away.", examples=["safepoint untag runs/digits release-1"], quiet="Print nothing.")
@click.argument("run")
@click.argument("name")
def untag(run: str, name: str, as_json: bool, quiet: bool) -> None:
    """Take a tag away; the snapshot stays until it is pruned or deleted."""
    from safepoint.cli.output import cell, emit, stdout
    from safepoint.cli.subject import find_run, reference_of, snapshot_document

    repository = find_run(run)
    snapshot = repository.untag(name)
    if as_json:
        emit(
            {
                "reference": reference_of(repository, snapshot.number),
                "tag": name,
                "snapshot": snapshot_document(snapshot),
            }
        )
    elif not quiet:
        stdout().print(cell(f"snapshot {snapshot.number}, step {snapshot.step}, is no longer called {name}"))
