"""`safepoint plot`: pictures of a run, of a snapshot or file, and of what changed between two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never, get_args

import click

from safepoint.cli.command import command
from safepoint.cli.text import size
from safepoint.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safepoint.cli.pictures.numbers import Numbers
    from safepoint.repository import Progress

Kind: TypeAlias = Literal["metrics", "weights", "updates", "sizes", "changes"]

KINDS: tuple[Kind, ...] = get_args(Kind)
_MOST_SNAPSHOTS = 100


@command(
    short="Draw a run, a file, or what changed between two.",
    examples=[
        "safepoint plot runs/digits -o digits.png",
        "safepoint plot runs/digits --kind updates -o updates.svg",
        "safepoint plot runs/digits -o digits.html",
        "safepoint plot model.safetensors -o sizes.pdf",
        "safepoint plot base.pt tuned.safetensors -o changes.png",
    ],
    quiet="Print the name of the file only.",
)
@click.argument("refs", nargs=-1, required=True, metavar="REF|FILE...")
@click.option("-o", "--output", metavar="FILE", help="A .png, .svg, .pdf or .html to write.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="What to draw; in a page, several.")
@click.option("--layers", multiple=True, metavar="GLOB", help="Only these tensors, not all weights; may be repeated.")
@click.option("--rename", multiple=True, metavar="REGEX=NEW", help="changes: rename the first's tensors.")
@click.option(
    "--snapshots", type=click.IntRange(min=2), default=_MOST_SNAPSHOTS, help="Look at N at most. [default: 100]"
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def plot(
    refs: tuple[str, ...],
    output: str | None,
    kinds: tuple[Kind, ...],
    layers: tuple[str, ...],
    rename: tuple[str, ...],
    snapshots: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw a run, a snapshot or file, or what changed between two of them.

    \b
    metrics  over the steps of a run, the best and the kept snapshots marked
    weights  how the elements of each tensor are spread, over the steps
    updates  how far each layer moved at each step, relative to its size
    sizes    bytes by layer
    changes  how far each tensor moved between two snapshots or files

    Without --kind: metrics of a run (in a page, all that a run has), sizes of a file, changes between two. --json
    prints the numbers and draws nothing unless -o is given. What a picture shows and leaves out is said beside it;
    quantiles of tensors above 65,536 elements are those of a fixed sample, every 251st element. What was worked out is
    kept in the run's folder `derived/`, which may be deleted at any time.
    """  # noqa: D301 — click's mark for lines that stay
    from safepoint.cli.output import cell, emit, emit_lines, progress_bar, stderr
    from safepoint.cli.pictures.draw import caption
    from safepoint.cli.pictures.files import check_library, check_path, write_pictures

    path = None if output is None else Path(output)
    if path is None and not as_json:
        raise click.UsageError("say where to draw: -o FILE.png, or --json for the numbers")
    chosen = _kinds(refs, kinds, page=path is None or path.suffix.lower() == ".html")
    if path is not None:
        check_path(path, force=force)
        check_library()
    with progress_bar("read", hidden=as_json or quiet) as progress:
        pictures = [_numbers(kind, refs, layers, rename, snapshots, progress) for kind in chosen]
    written = 0
    if path is not None:
        written = write_pictures(path, " → ".join(refs), pictures)
    if as_json:
        emit({"refs": list(refs), "file": output, "pictures": dict(zip(chosen, map(asdict, pictures), strict=True))})
    elif quiet:
        emit_lines([str(path)])
    else:
        words = stderr()
        words.print(cell(f"{path}: {', '.join(chosen)}, {size(written)}"))
        for picture in pictures:
            words.print(cell(caption(picture), "dim"))


def _kinds(refs: Sequence[str], asked: Sequence[Kind], *, page: bool) -> list[Kind]:
    """What to draw: what was asked for if these can be drawn so, or what they are for."""
    if len(refs) > 2:
        raise UnsupportedError(f"{len(refs)} runs or files", expected="one, or two to compare")
    found: list[Kind]
    if asked:
        found = list(dict.fromkeys(asked))
    elif len(refs) == 2:
        found = ["changes"]
    else:
        found = _of_one(refs[0], page=page)
    if len(found) > 1 and not page:
        raise UnsupportedError(f"{len(found)} pictures in one file", hint="-o FILE.html, or one --kind at a time")
    for kind in found:
        if (kind == "changes") != (len(refs) == 2):
            raise UnsupportedError(f"--kind {kind} of {len(refs)}", expected="two for changes, one for all else")
    return found


def _of_one(ref: str, *, page: bool) -> list[Kind]:
    from safepoint.cli.subject import find

    found = find(ref)
    if isinstance(found, Path) or found[1] is not None:
        return ["sizes"]
    repository = found[0]
    there = [snapshot for snapshot in repository.history()[0].values() if not snapshot.pruned]
    metrics: list[Kind] = ["metrics"] if any(snapshot.metrics for snapshot in there) else []
    moving: list[Kind] = ["updates", "weights"] if len(there) > 1 else []
    if page:
        return [*metrics, *moving, "sizes"]
    return metrics or ["weights"]


def _numbers(
    kind: Kind,
    refs: Sequence[str],
    layers: Sequence[str],
    rename: tuple[str, ...],
    snapshots: int,
    progress: Progress | None,
) -> Numbers:
    from safepoint.api.open import open as open_any
    from safepoint.cli.diff import rename_rules
    from safepoint.cli.pictures import numbers
    from safepoint.cli.subject import find_run

    match kind:
        case "metrics":
            return numbers.metrics_of(find_run(refs[0]))
        case "weights":
            return numbers.weights_of(find_run(refs[0]), layers, at_most=snapshots, progress=progress)
        case "updates":
            return numbers.updates_of(find_run(refs[0]), layers, at_most=snapshots, progress=progress)
        case "sizes":
            with open_any(refs[0]) as tensors:
                return numbers.sizes_of(tensors, layers)
        case "changes":
            with open_any(refs[0]) as first, open_any(refs[1]) as second:
                return numbers.changes_of(first, second, layers, rename_rules(rename))
        case _:
            assert_never(kind)
