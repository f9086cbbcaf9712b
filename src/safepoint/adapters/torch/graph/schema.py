"""The graph as a document: a closed schema, decoded strictly before PyTorch sees anything of it.

Values are numbered: the tensors first, then the inputs, then the results of the nodes, in order; a reference may only
look back. Arguments are JSON: null, booleans, integers, floats, texts and lists are themselves; `{"value": n}` is a
reference, `{"dtype": "float32"}`, `{"device": "model"}` (where the model is, or "cpu"), `{"layout": "strided"}`,
`{"format": "channels_last"}`, and `{"float": "inf"}`, `{"complex": [re, im]}` as in FORMAT.md's values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from safepoint.adapters.structures import decode_graph

VERSION = 1
MAX_NODES = 1_000_000
MAX_DEPTH = 16  # of arguments, inputs, outputs and guards: traced ones have at most five
MAX_VALUES = 10_000_000  # constants and references in all nodes together

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class GraphTensor(_Part, frozen=True):
    """A tensor of the model, under its own name; `tied` is the number of an earlier one that it is the same as."""

    name: _Name
    kind: Literal["parameter", "buffer", "hidden", "constant"]
    dtype: _Name
    shape: Annotated[list[_Count], msgspec.Meta(max_length=64)]
    stored: _Name
    trainable: bool = False
    tied: _Count | None = None


class GraphInput(_Part, frozen=True):
    """A leaf of the arguments of a call: a tensor, or a constant that a call must repeat.

    `shape` has a number, or the name of a size, for each axis; None where the size follows from others.
    """

    name: _Name
    dtype: str | None = None
    shape: list[_Count | _Name | None] | None = None
    constant: Any = None


class GraphSize(_Part, frozen=True):
    """What a named size may be; `one`: it may also be 1, which was tried when the model was saved.

    Where `one` is the name of another size, it may be 1 where that one is 1 too.
    """

    min: _Count
    max: _Count | None = None
    one: bool | _Name = False


class GraphDocument(_Part, frozen=True):
    """A whole graph."""

    version: int
    torch: Annotated[str, msgspec.Meta(max_length=100)]
    tensors: Annotated[list[GraphTensor], msgspec.Meta(max_length=MAX_NODES)]
    inputs: Annotated[list[GraphInput], msgspec.Meta(max_length=10_000)]
    positional: list[Any]
    keyword: dict[str, Any]
    names: list[str]
    sizes: dict[str, GraphSize]
    guards: Annotated[list[Any], msgspec.Meta(max_length=100_000)]
    nodes: Annotated[list[tuple[str, list[Any], dict[str, Any]]], msgspec.Meta(max_length=MAX_NODES)]
    outputs: Any


def decode(document: object, where: str) -> GraphDocument:
    """The checked document.

    Raises:
        UnsupportedError: a newer version's.
        CorruptionError: nothing that this version writes.
    """
    return decode_graph(
        document,
        GraphDocument,
        version=VERSION,
        max_depth=MAX_DEPTH + 4,
        max_values=MAX_VALUES,
        check=_check_version,
        where=where,
    )


def encode(document: GraphDocument) -> dict[str, Any]:
    """Plain JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(document)
    return plain


def _check_version(document: GraphDocument) -> None:
    if document.version != VERSION:
        raise ValueError(f"version {document.version}")
