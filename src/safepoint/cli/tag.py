"""`safepoint tag`: a name for a snapshot."""

from __future__ import annotations

import click

from safepoint.cli.command import command


@command(
    short="Give a snapshot a name; tagged ones are never pruned.",
    examples=["safepoint tag runs/digits@best release-1", "safepoint show runs/digits@release-1"],
    quiet="Print nothing.",
)
@click.argument("ref")
@click.argument("name")
def tag(ref: str, name: str, as_json: bool, quiet: bool) -> None:
    """Give a snapshot a name; a tagged snapshot is never pruned.

    A tag is letters, digits, dots and dashes, and names one snapshot of a run.
    """
    from safepoint.cli.output import cell, emit, stdout
    from safepoint.cli.subject import find_snapshot, reference_of, snapshot_document

    repository, snapshot = find_snapshot(ref)
    tagged = repository.tag(f"id:{snapshot.number}", name)
    if as_json:
        emit({"reference": reference_of(repository, tagged.number), "tag": name, "snapshot": snapshot_document(tagged)})
    elif not quiet:
        stdout().print(cell(f"{repository.location}@{name} is snapshot {tagged.number}, step {tagged.step}"))
