"""`safepoint show`: what is in a snapshot, a model file, or a file of anyone's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from safepoint.cli.command import command
from safepoint.cli.text import ago, count, metric, moment, now, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from safepoint.api.open import Tensors
    from safepoint.formats import Contents
    from safepoint.repository import Manifest, ModelFile, Repository, Snapshot
    from safepoint.tree import Leaf


@command(
    short="Show what a snapshot, a model or any file of tensors holds.",
    examples=[
        "safepoint show runs/digits",
        "safepoint show runs/digits@best:val_loss --depth 2",
        "safepoint show runs/digits@4200 'model/*' --json",
        "safepoint show digits.model",
        "safepoint show model.pt --layers 'encoder.*' --stats",
        "safepoint show model.gguf --sort bytes",
    ],
    quiet="Print names only, one a line.",
)
@click.argument("ref")
@click.argument("names", nargs=-1)
@click.option("--layers", multiple=True, metavar="GLOB", help="As NAMES; may be repeated.")
@click.option("--depth", type=click.IntRange(min=1), help="Sum up what lies deeper than N levels.")
@click.option("--stats", is_flag=True, help="Read every tensor: range, mean, norm, quantiles; what is wrong first.")
@click.option("--sort", type=click.Choice(["name", "bytes", "norm"]), help="One flat list in this order.")
@click.option("--csv", "as_csv", is_flag=True, help="Rows for a spreadsheet on stdout.")
def show(
    ref: str,
    names: tuple[str, ...],
    layers: tuple[str, ...],
    depth: int | None,
    stats: bool,
    sort: str | None,
    as_csv: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what a snapshot, a model or any file of tensors holds: names, shapes, values, metadata.

    REF may be anyone's file: safetensors, PyTorch, Keras, TensorFlow, Orbax, NumPy, ONNX, GGUF. NAMES are globs
    over the names of tensors and values; without one, everything is shown. Nothing is executed, and no framework
    is needed.

    With --stats, first what is wrong: NaN and infinities, tensors that are all zero or all the same, rows and columns
    that are zero throughout, tensors with the bytes of another. Quantiles are exact up to 65,536 elements, else of
    a sample. Of a snapshot, what was found is kept in the run's folder derived/ and not read again.
    """
    from safepoint.cli.subject import find

    options = _Options((*names, *layers), depth, stats or sort == "norm", sort, as_csv, as_json, quiet)
    found = find(ref)
    if isinstance(found, Path):
        _show_file(found, options)
        return
    repository, reference = found
    with repository.reading():
        snapshot = repository.resolve(reference or "latest")
        manifest = repository.manifest(snapshot)
        _show_snapshot(repository, snapshot, manifest, options)


@final
@dataclass(frozen=True, slots=True)
class _Options:
    """What was asked for."""

    names: tuple[str, ...]
    depth: int | None
    stats: bool
    sort: str | None
    as_csv: bool
    as_json: bool
    quiet: bool


def _show_snapshot(repository: Repository, snapshot: Snapshot, manifest: Manifest, options: _Options) -> None:
    from safepoint.cli.subject import as_json as plain_json
    from safepoint.cli.subject import reference_of, snapshot_document

    _show(
        manifest.tree.leaves,
        manifest,
        options,
        lambda: {
            "kind": "snapshot",
            "repository": repository.location,
            "reference": reference_of(repository, snapshot.number),
            **snapshot_document(snapshot),
            "config": plain_json(snapshot.config),
            "environment": dict(snapshot.environment),
            "manifest": snapshot.manifest.id,
        },
        lambda console: _print_facts(console, repository, snapshot),
    )


def _show_file(path: Path, options: _Options) -> None:
    from safepoint.api.open import open as open_any
    from safepoint.cli.foreign import leaves_of
    from safepoint.cli.structure import layers_of, summary_of
    from safepoint.repository import ModelFile

    with open_any(path) as tensors:
        model = tensors.source
        if not isinstance(model, ModelFile):
            _show(
                leaves_of(tensors),
                tensors.source,
                options,
                lambda: _foreign_document(tensors),
                lambda console: _print_foreign(console, tensors),
            )
            return
        _show(
            model.tree.leaves,
            model,
            options,
            lambda: {
                "kind": "model",
                "path": model.path,
                "format": model.format,
                "file_bytes": Path(model.path).stat().st_size,
                "num_tensors": len(model.tree.tensors),
                "num_bytes": model.tree.num_bytes,
                "summary": summary_of(model.structure),
                "layers": layers_of(model.structure),
                "structure": model.structure,
            },
            lambda console: _print_model(console, tensors, model),
        )


def _show(
    leaves: Mapping[str, Leaf],
    source: Manifest | ModelFile | Contents,
    options: _Options,
    document: Callable[[], dict[str, Any]],
    print_head: Callable[[Console], None],
) -> None:
    """What every kind has in common: a choice of names, in one of the forms."""
    from safepoint.cli import listing
    from safepoint.cli.contents import documents, print_leaves
    from safepoint.cli.output import emit, emit_lines, progress_bar, stdout
    from safepoint.tree import Tensor

    chosen = _chosen(leaves, options.names)
    if options.quiet:
        emit_lines(list(chosen))
        return
    tensors = {name: leaf for name, leaf in chosen.items() if isinstance(leaf, Tensor)}
    measured = None
    if options.stats:
        from safepoint.api.stats import measure

        with progress_bar("measure", hidden=options.as_json or options.as_csv) as progress:
            measured = measure(tensors, source=source, progress=progress)
    tensors = listing.in_order(tensors, measured, options.sort)
    if options.as_csv:
        listing.write_csv(tensors, measured)
    elif options.as_json:
        emit({**document(), **documents(chosen), "tensors": listing.documents(tensors, measured)})
    else:
        console = stdout()
        print_head(console)
        if measured is None and options.sort is None:
            print_leaves(console, chosen, options.depth)
        else:
            listing.print_rows(console, tensors, measured)


def _foreign_document(tensors: Tensors) -> dict[str, Any]:
    from safepoint.cli.foreign import num_elements, optimizer_of, steps_of
    from safepoint.cli.subject import as_json as plain_json

    return {
        "kind": tensors.kind,
        "path": tensors.location,
        "title": tensors.title,
        "framework": tensors.framework,
        "file_bytes": _file_bytes(tensors),
        "num_tensors": len(tensors),
        "num_elements": num_elements(tensors),
        "num_bytes": tensors.tree.num_bytes,
        "optimizer": optimizer_of(tensors.tree.tensors),
        "steps": steps_of(tensors),
        "metadata": plain_json(dict(tensors.metadata)),
    }


def _print_foreign(console: Console, tensors: Tensors) -> None:
    from safepoint.cli.foreign import summary
    from safepoint.cli.output import facts, headline

    parts = [(tensors.location, "bold"), (tensors.title, "bold cyan"), (count(len(tensors), "tensor"), "")]
    console.print(headline(*parts, (f"{size(_file_bytes(tensors))} on disk", "")))
    console.print()
    console.print(facts(summary(tensors)))
    config = tensors.metadata.get("config") or tensors.metadata.get("model_config")
    if isinstance(config, dict):
        _print_layers(console, {"config": config})


def _file_bytes(tensors: Tensors) -> int:
    from safepoint.formats import Contents

    return tensors.source.file_bytes if isinstance(tensors.source, Contents) else 0


def _chosen(leaves: Mapping[str, Leaf], patterns: Sequence[str]) -> dict[str, Leaf]:
    from safepoint.tree import select

    return {name: leaves[name] for name in (select(leaves, patterns, argument="NAMES") if patterns else leaves)}


def _print_facts(console: Console, repository: Repository, snapshot: Snapshot) -> None:
    from safepoint.cli.output import facts, headline

    time = now()
    console.print(
        headline(
            (f"{repository.location}@id:{snapshot.number}", "bold"),
            (f"step {snapshot.step}", "bold cyan"),
            (count(snapshot.num_tensors, "tensor"), ""),
            (size(snapshot.num_bytes), ""),
        )
    )
    console.print()
    rows = {
        "saved": f"{moment(snapshot.time, time)}, {ago(snapshot.time, time)}; {size(snapshot.written_bytes)} were new",
        "after": "" if snapshot.parent is None else f"{repository.location}@id:{snapshot.parent}",
        "tags": ", ".join(snapshot.tags),
        "metrics": ", ".join(f"{name} {metric(value)}" for name, value in snapshot.metrics.items()),
        "config": _short(snapshot.config),
        "made with": ", ".join(f"{name} {version}" for name, version in snapshot.environment.items()),
        "verified": "never" if snapshot.verified is None else ago(snapshot.verified, time),
    }
    console.print(facts(rows))


def _print_model(console: Console, tensors: Tensors, model: ModelFile) -> None:
    from safepoint.cli.output import facts, headline
    from safepoint.cli.structure import summary_of

    console.print(
        headline(
            (model.path, "bold"),
            (f"{tensors.framework} model", "bold cyan"),
            (count(len(tensors), "tensor"), ""),
            (f"{size(Path(model.path).stat().st_size)} on disk", ""),
        )
    )
    console.print()
    console.print(facts(summary_of(model.structure)))
    _print_layers(console, model.structure)


def _print_layers(console: Console, structure: Mapping[str, Any]) -> None:
    from safepoint.cli.output import cell, table
    from safepoint.cli.structure import layers_of

    layers = layers_of(structure)
    if layers:
        rows = table("layer", "class", "built with", fold=("layer", "class", "built with"))
        for layer in layers:
            rows.add_row(cell(layer["name"]), cell(layer["class"], "cyan"), cell(layer["details"]))
        console.print()
        console.print(rows)


def _short(config: Any) -> str:
    """A config in one line; nested parts as they are in Python."""
    if isinstance(config, dict):
        return ", ".join(f"{key} {value if isinstance(value, str) else repr(value)}" for key, value in config.items())
    return "" if config is None else repr(config)
