"""The graph as a document: a closed schema, decoded strictly before JAX sees anything of it.

`arguments` and `outputs` are trees (see `nesting`) whose leaves are {"input": n} and {"output": n}. Each program is one
StableHLO module over the same tensors and arguments: its operands are the tensors, then the inputs that are arrays; its
results the outputs that are arrays. Sizes are numbers, or expressions over the names of sizes ("b", "2*b + 1").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from safepoint.adapters.structures import decode_graph

VERSION = 1
CONVENTION = 10
"""How `jax.export` calls `main`: an index of the platform where there are several, then every array."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
KEYS = frozenset({"threefry2x32", "rbg", "unsafe_rbg"})
"""JAX's own implementations of PRNG keys."""
MAX_DEPTH = 40
MAX_VALUES = 1_000_000
# The parser of such expressions is JAX's own, and recursive: no more of them than it writes itself.
_SIZE = re.compile(r"[a-z0-9_ +*(),\-^]{1,200}")
_LARGE = re.compile(r"\d{13,}|\^\s*\d{2,}|\([^)]*\([^)]*\([^)]*\(")

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Shape = Annotated[
    list[_Count | Annotated[str, msgspec.Meta(min_length=1, max_length=200)]], msgspec.Meta(max_length=64)
]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class GraphTensor(_Part, frozen=True):
    """A tensor of the model, as it stands in the file; `key` is the implementation of a typed PRNG key."""

    name: _Name
    dtype: _Name
    shape: Annotated[list[_Count], msgspec.Meta(max_length=64)]
    key: str | None = None


class GraphInput(_Part, frozen=True):
    """A leaf of the arguments of a call: an array (or typed key), or a constant that a call must repeat."""

    name: _Name
    dtype: _Name | None = None
    key: str | None = None
    constant: Any = None


class GraphOutput(_Part, frozen=True):
    """A leaf of the result: an array (or typed key), or a constant."""

    dtype: _Name | None = None
    key: str | None = None
    constant: Any = None


class GraphArgument(_Part, frozen=True):
    """An argument of a call: by its name, where it has one, or its position."""

    name: _Name | None
    tree: Any
    keyword_only: bool = False


class GraphProgram(_Part, frozen=True):
    """One StableHLO module: where its text is, and the shapes of its array inputs and outputs, in order."""

    text: _Name
    inputs: Annotated[list[_Shape], msgspec.Meta(max_length=10_000)]
    outputs: Annotated[list[_Shape], msgspec.Meta(max_length=10_000)]


class GraphDocument(_Part, frozen=True):
    """A whole graph. `convention` is `jax.export`'s calling convention, `platforms` what it was lowered for."""

    version: int
    jax: Annotated[str, msgspec.Meta(max_length=100)]
    stablehlo: Annotated[str, msgspec.Meta(max_length=100)]
    convention: int
    platforms: Annotated[list[str], msgspec.Meta(min_length=1, max_length=4)]
    tensors: Annotated[list[GraphTensor], msgspec.Meta(max_length=100_000)]
    inputs: Annotated[list[GraphInput], msgspec.Meta(max_length=10_000)]
    arguments: Annotated[list[GraphArgument], msgspec.Meta(max_length=1000)]
    outputs: Annotated[list[GraphOutput], msgspec.Meta(max_length=10_000)]
    result: Any
    programs: Annotated[list[GraphProgram], msgspec.Meta(min_length=1, max_length=2)]


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
        max_depth=MAX_DEPTH,
        max_values=MAX_VALUES,
        check=_check_consistent,
        where=where,
    )


def encode(document: GraphDocument) -> dict[str, Any]:
    """Plain JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(document)
    return plain


def _check_consistent(document: GraphDocument) -> None:
    if document.version != VERSION or document.convention != CONVENTION:
        raise ValueError(f"its version is {document.version}, its calling convention {document.convention}")
    if len({*document.platforms} & {*PLATFORMS}) != len(document.platforms):
        raise ValueError("its platforms are none")
    leaves: list[Any] = [*document.tensors, *document.inputs, *document.outputs]
    if any(leaf.key is not None and (leaf.key not in KEYS or leaf.dtype != "uint32") for leaf in leaves):
        raise ValueError("its keys are none")
    arrays = [sum(item.dtype is not None for item in leaves) for leaves in (document.inputs, document.outputs)]
    for program in document.programs:
        if [len(program.inputs), len(program.outputs)] != arrays:
            raise ValueError("its shapes are not those of its arrays")
        _check_sizes([*program.inputs, *program.outputs])


def _check_sizes(shapes: Iterable[Iterable[int | str]]) -> None:
    for shape in shapes:
        for size in shape:
            if isinstance(size, str) and (not _SIZE.fullmatch(size) or _LARGE.search(size)):
                raise ValueError(f"{size[:60]!r} is no size")
