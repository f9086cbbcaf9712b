"""`safepoint repair`: what is damaged is set aside, what is held elsewhere is restored, what is lost is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, size
from safepoint.errors import CorruptionError

if TYPE_CHECKING:
    from safepoint.repository import Repair


@command(
    short="Set damage aside, restore what is held elsewhere.",
    examples=["safepoint repair runs/digits", "safepoint repair runs/digits --json"],
    quiet="Print nothing but what is lost.",
)
@click.argument("run")
def repair(run: str, as_json: bool, quiet: bool) -> int:
    """Read every byte of a run, and put right what can be.

    Damaged blocks are never used again; those that other packs still hold are read from there. Nothing is deleted.
    Exit code 5 if anything is lost; the table says which file, tensor, rows and bytes, and which snapshots need them.
    """
    from safepoint.cli.output import emit, progress_bar
    from safepoint.cli.subject import find_run
    from safepoint.cli.verify import damage_document

    repository = find_run(run)
    with progress_bar("repair", hidden=as_json or quiet) as progress:
        done = repository.repair(progress=progress)
    if as_json:
        emit(
            {
                "ok": done.ok,
                "repository": repository.location,
                "restored": [damage_document(item) for item in done.restored],
                "lost": [damage_document(item) for item in done.lost],
                "whole": list(done.whole),
                "num_bytes": done.num_bytes,
            }
        )
    elif done.lost or not quiet:
        _print(repository.location, done)
    return 0 if done.ok else CorruptionError.exit_code


def _print(location: str, done: Repair) -> None:
    from safepoint.cli.output import cell, headline, stdout
    from safepoint.cli.verify import damage_table, ranges

    console = stdout()
    read = f"{size(done.num_bytes)} read"
    restored = f"{count(len(done.restored), 'place')} restored" if done.restored else ""
    if done.ok:
        words = restored or "nothing to repair"
        console.print(headline(("✓ whole", "bold green"), (location, "bold"), (words, ""), (read, "")))
        return
    lost = f"{count(len(done.lost), 'place')} lost"
    console.print(headline(("✗ lost", "bold red"), (location, "bold"), (lost, "red"), (restored, ""), (read, "")))
    console.print()
    console.print(damage_table(done.lost))
    console.print()
    newest = f"; the newest is {location}@id:{max(done.whole)}" if done.whole else ""
    console.print(cell(f"whole: {ranges(done.whole) or 'none'}{newest}"))
    console.print(cell("a lost block comes back with the next save that has its bytes"))
