"""What goes into a file: tensors that give their bytes piece by piece, plain values, and what is said beside them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

from safepoint.errors import UnsupportedError
from safepoint.tree import DTYPES, Branch, Node, TensorSpec, Value
from safepoint.tree.leaves import Bytes

_CASTS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


@final
@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor on its way into a file.

    Attributes:
        spec: shape and dtype.
        pieces: its C-order little-endian bytes from front to back, in pieces of at most 16 MiB; asked for once.
    """

    spec: TensorSpec
    pieces: Callable[[], Iterator[Bytes]]


@final
@dataclass(frozen=True, slots=True)
class Content:
    """What a file is made of.

    Attributes:
        tensors: by name, in order.
        values: by name, in order.
        metadata: texts about the whole.
        skeleton: how leaves are put together, for a format that has lists and dictionaries.
    """

    tensors: Mapping[str, Outgoing]
    values: Mapping[str, Value]
    metadata: Mapping[str, str]
    skeleton: Node = field(default_factory=lambda: Branch("dict"))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.num_bytes for tensor in self.tensors.values())


def check_dtypes(content: Content, known: Container[str], title: str) -> None:
    """Whether a format has a place for every dtype, asked before anything is written.

    Raises:
        UnsupportedError: it has not; names the tensor.
    """
    for name, tensor in content.tensors.items():
        dtype = tensor.spec.dtype
        if dtype in known:
            continue
        casts = " or ".join(word for cast, word in _CASTS.items() if cast in known)
        floating = "float" in dtype and DTYPES[dtype].numpy is not None
        raise UnsupportedError(
            f"{title} has no {dtype}, which {name!r} is",
            expected=f"a dtype that {title} has",
            found=f"{name}: {tensor.spec}",
            hint=f"convert it: --dtype {casts}" if floating else "leave it out with --select, or choose another format",
        )


def refuse_name(name: str, title: str, why: str) -> UnsupportedError:
    """The refusal of a name that a format cannot keep."""
    return UnsupportedError(f"{title} has no place for a tensor called {name[:80]!r}: {why}", hint="--rename REGEX=NEW")
