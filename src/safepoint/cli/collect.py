"""`safepoint collect`: free the space of what was pruned."""

from __future__ import annotations

import click

from safepoint.cli.command import command
from safepoint.cli.text import size


@command(
    short="Free the space of what was given up.", examples=["safepoint collect runs/digits"], quiet="Print nothing."
)
@click.argument("run")
def collect(run: str, as_json: bool, quiet: bool) -> None:
    """Delete the files that no snapshot needs any more, and say how much room that made.

    Files go only when every snapshot that is kept can be read; while a run is being saved or restored, nothing goes and
    the exit code is 11.
    """
    from safepoint.cli.output import cell, emit, stdout
    from safepoint.cli.subject import find_run

    repository = find_run(run)
    freed = repository.collect()
    if as_json:
        emit({"repository": repository.location, "freed_bytes": freed})
    elif not quiet:
        stdout().print(cell(f"{size(freed)} freed" if freed else "nothing to free"))
