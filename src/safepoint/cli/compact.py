"""`safepoint compact`: packs of which most is dead are written again, so that their space comes back."""

from __future__ import annotations

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, size


@command(
    short="Free what is dead inside packs that are still needed.",
    examples=["safepoint compact runs/digits", "safepoint compact runs/digits --json"],
    quiet="Print nothing.",
)
@click.argument("run")
def compact(run: str, as_json: bool, quiet: bool) -> None:
    """Write what is alive in packs of which most is dead to new ones, and free the old ones' space.

    Every snapshot, tag and signature stays as it is, and a running job does not notice. While a save or restore runs,
    the space stays taken until the next collection.
    """
    from safepoint.cli.output import cell, emit, progress_bar, stdout
    from safepoint.cli.subject import find_run

    repository = find_run(run)
    with progress_bar("compact", hidden=as_json or quiet) as progress:
        done = repository.compact(progress=progress)
    if as_json:
        emit(
            {
                "repository": repository.location,
                "packs": done.packs,
                "moved_bytes": done.moved_bytes,
                "freed_bytes": done.freed_bytes,
            }
        )
    elif not quiet:
        what = f"{count(done.packs, 'pack')} written again, {size(done.moved_bytes)} moved"
        later = f"its space is free after: safepoint collect {repository.location}"
        freed = later if done.freed_bytes is None else f"{size(done.freed_bytes)} freed"
        stdout().print(cell(f"{what}; {freed}" if done.packs else "nothing to compact"))
