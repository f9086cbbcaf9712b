"""`safepoint convert`: anyone's file, model or snapshot as a file of another format, or as a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from safepoint.cli.command import command
from safepoint.cli.text import count, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safepoint.api.convert import Conversion

_FORMATS = ("safetensors", "pytorch", "npz", "hdf5", "tensorflow", "repository")
_MOST_NAMES = 5


@command(
    short="Write a file, model or snapshot in another format.",
    examples=[
        "safepoint convert pytorch_model.bin model.safetensors",
        "safepoint convert runs/digits@best net.pt --select model",
        "safepoint convert shards/ small.safetensors --dtype bf16",
        "safepoint convert model.ckpt weights.npz --rename '/kernel$=.weight'",
    ],
    quiet="Print nothing.",
)
@click.argument("source")
@click.argument("target")
@click.option("--to", type=click.Choice(_FORMATS), help="The format, where the suffix of TARGET does not say it.")
@click.option("--dtype", type=click.Choice(["bf16", "f16", "f32"]), help="Convert floating-point tensors.")
@click.option("--select", multiple=True, metavar="GLOB", help="Only these names; may be repeated.")
@click.option("--rename", multiple=True, metavar="REGEX=NEW", help="Rename tensors; may be repeated.")
@click.option("--force", is_flag=True, help="Replace TARGET, when the new file is durable and was read back.")
def convert(
    source: str,
    target: str,
    to: str | None,
    dtype: str | None,
    select: tuple[str, ...],
    rename: tuple[str, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write whatever `safepoint show` reads to TARGET, in the format that its suffix means.

    .safetensors, .pt, .npz, .h5, .index (a TensorFlow checkpoint); no suffix means a new repository. Shards become one
    file. Memory holds one tensor at a time. The file is read back and compared before it takes its name; until then
    TARGET is what it was.

    Names stay as `show` prints them; of a snapshot's only object, or the one selected, the tracked name is left out.
    What TARGET has no place for is said: tensors of such a dtype are an error, plain values are left out.
    """
    from safepoint.api.convert import convert as convert_any
    from safepoint.cli.diff import rename_rules
    from safepoint.cli.output import emit, progress_bar

    with progress_bar("convert", hidden=as_json or quiet) as progress:
        done = convert_any(
            source,
            target,
            to=to,
            dtype=dtype,
            select=list(select) or None,
            rename=rename_rules(rename),
            force=force,
            progress=progress,
        )
    if as_json:
        emit(_document(source, done))
    elif not quiet:
        _print(done)


def _document(source: str, done: Conversion) -> dict[str, Any]:
    return {
        "source": source,
        "target": done.target,
        "format": done.kind,
        "num_bytes": done.num_bytes,
        "names": dict(done.names),
        "cast": list(done.cast),
        "left_out": list(done.left_out),
        "opaque": list(done.opaque),
    }


def _print(done: Conversion) -> None:
    from safepoint.cli.output import cell, headline, stderr, stdout

    what = [(done.target, "bold"), (done.kind, ""), (count(len(done.names), "tensor"), ""), (size(done.num_bytes), "")]
    cast = f"{len(done.cast):,} converted to another dtype" if done.cast else ""
    stdout().print(headline(*what, (cast, ""), ("read back", "green")))
    if done.left_out:
        words = f"{count(len(done.left_out), 'plain value')} left out, which {done.kind} has no place for"
        stderr().print(cell(f"{words}: {_some(done.left_out)}", "yellow"))
    if done.opaque:
        words = f"{count(len(done.opaque), 'tensor')} of a quantized type stay packed bytes"
        stderr().print(cell(f"{words}: {_some(done.opaque)}", "yellow"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
