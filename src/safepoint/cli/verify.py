"""`safepoint verify`: every byte read again and compared with its digest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, size
from safepoint.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safepoint.cli.table import Table
    from safepoint.repository import Damage, Repository


def _percent(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`5%` as 0.05."""
    if value is None:
        return None
    try:
        part = float(value.removesuffix("%")) / 100
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise click.BadParameter(f"{value!r}: expected a percentage, like 5%", context, parameter)
    return part


@command(
    short="Read every byte again and compare digests.",
    examples=[
        "safepoint verify runs/digits",
        "safepoint verify runs/digits --sample 5%",
        "safepoint verify runs/digits@best",
        "safepoint verify digits.model",
    ],
    quiet="Print nothing but damage.",
)
@click.argument("ref")
@click.option("--sample", callback=_percent, metavar="PERCENT", help="Read only so much, drawn at random: 5%.")
@click.option("--key", metavar="FILE", help="A public Ed25519 key, PEM: who must have signed it.")
def verify(ref: str, sample: float | None, key: str | None, as_json: bool, quiet: bool) -> int:
    """Read every byte of a run, a snapshot or a model file and compare digests.

    Blocks that snapshots share are read once. Exit code 5 if anything is damaged; the table says which file, tensor
    rows and bytes, and which snapshots need them. What is whole is marked as verified; what is damaged, so that no save
    relies on it. With --key, also whether it is signed with that key; exit code 8 if not.
    """
    from safepoint.cli.output import emit
    from safepoint.cli.subject import find

    found = find(ref)
    signed = {} if key is None else {"signed_by": _check_signature(found, key)}
    started = time.perf_counter()
    if isinstance(found, Path):
        if sample is not None:
            raise click.UsageError("--sample is for runs: a model file is read as a whole")
        document, damage = _verify_file(found, hidden=as_json or quiet)
    else:
        from safepoint.cli.output import progress_bar

        repository, reference = found
        reference = "latest" if reference is None and key is not None else reference  # a signature is of one
        with progress_bar("verify", hidden=as_json or quiet) as progress:
            result = repository.verify(reference, sample=sample, progress=progress)
        damage = list(result.damage)
        broken = sorted({number for item in damage for number in item.snapshots})
        document = {
            "repository": repository.location,
            "reference": reference,
            "whole": list(result.whole),
            "broken": broken,
            "num_bytes": result.num_bytes,
            **({} if sample is None else {"sample": sample}),
        }
    document = {"ok": not damage, **document, **signed, "damage": [damage_document(item) for item in damage]}
    if as_json:
        emit(document)
    elif damage or not quiet:
        _print(ref, document, damage, time.perf_counter() - started)
    return CorruptionError.exit_code if damage else 0


def _check_signature(found: tuple[Repository, str | None] | Path, key: str) -> str:
    """The key, if what was found is signed with it."""
    from safepoint.repository.signing import check_file, read_key

    public = read_key(key)
    if isinstance(found, Path):
        return check_file(found, public)
    repository, reference = found
    return repository.check_signature(reference or "latest", public)


def _verify_file(path: Path, *, hidden: bool) -> tuple[dict[str, Any], list[Damage]]:
    from safepoint.cli.model_file import verify_file
    from safepoint.cli.output import progress_bar
    from safepoint.repository import Damage

    document: dict[str, Any] = {"path": str(path), "num_bytes": 0}
    try:
        with progress_bar("verify", hidden=hidden) as progress:
            num_bytes, damage = verify_file(path, progress)
    except CorruptionError as error:  # the header: nothing in the file can be trusted
        return document, [Damage((), error.file, error.name, error.span, error.message)]
    return {**document, "num_bytes": num_bytes}, damage


def damage_document(item: Damage) -> dict[str, Any]:
    """What is damaged, for programs; fields are added, never changed."""
    return {
        "file": item.file,
        "tensor": item.name,
        "bytes": None if item.span is None else list(item.span),
        "rows": None if item.rows is None else list(item.rows),
        "snapshots": list(item.snapshots),
        "message": item.message,
    }


def _print(ref: str, document: dict[str, Any], damage: Sequence[Damage], seconds: float) -> None:
    from safepoint.cli.output import cell, headline, stdout

    console = stdout()
    read = f"{size(document['num_bytes'])} read in {seconds:.1f} s"
    if not damage:
        what = count(len(document["whole"]), "snapshot") if "whole" in document else "model file"
        what = "a sample" if "sample" in document else what
        what += f"  ·  signed by {document['signed_by'][:16]}…" if "signed_by" in document else ""
        console.print(headline(("✓ whole", "bold green"), (ref, "bold"), (what, ""), (read, "")))
        return
    places = count(len(damage), "place")
    console.print(headline(("✗ damaged", "bold red"), (ref, "bold"), (places, "red"), (read, "")))
    console.print()
    console.print(damage_table(damage))
    console.print()
    if document.get("whole"):
        newest = max(document["whole"])
        console.print(
            cell(f"whole: {ranges(document['whole'])}; the newest of them is {document['repository']}@id:{newest}")
        )
    elif "whole" in document and document["reference"] is None:
        console.print(cell("no snapshot is whole"))


def damage_table(damage: Sequence[Damage]) -> Table:
    """A row for each thing that is damaged."""
    from safepoint.cli.output import cell, table

    files = any(item.snapshots for item in damage)
    columns = ("file", "what", "rows", "bytes", *(["snapshots"] if files else []))
    rows = table(*columns, fold=("file", "what", "snapshots"))
    for item in damage:
        first, span = (f"{pair[0]:,}-{pair[1]:,}" if pair is not None else "" for pair in (item.rows, item.span))
        cells = [cell(item.file or ""), cell(item.name or item.message, "red"), cell(first), cell(span)]
        rows.add_row(*cells, *([cell(ranges(item.snapshots))] if files else []))
    return rows


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
