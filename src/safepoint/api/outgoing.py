"""Tensors on their way from any source into a file: piece by piece, cast where that was asked for, remembered.

Invariant: what the source can verify is verified, and what was handed over can be recognised again: each 16 MiB of it
has a checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import BLOCK_BYTES, checksum, cut
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats import Contents
from safepoint.formats.writing import Outgoing
from safepoint.repository import Progress, Workers
from safepoint.tree import DTYPES, Tensor, TensorSpec, dtype_of
from safepoint.tree.leaves import Bytes

CASTS = {
    "bf16": "bfloat16", "f16": "float16", "f32": "float32",
    "bfloat16": "bfloat16", "float16": "float16", "float32": "float32",
}  # fmt: skip
"""The word for a dtype to convert to → its name."""

_READERS = 2


@final
class Ledger:
    """What was handed over, and how much of it.

    Args:
        total: bytes that will be handed over.
        progress: see `Progress`; the second half of the way is reading the file again.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._sums: dict[str, list[str]] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._total = 2 * total
        self._done = 0
        self._progress = progress

    def outgoing(self, name: str, tensor: Tensor, *, dtype: str | None, whole: bool) -> Outgoing:
        """A tensor as a writer wants it.

        Args:
            name: that it will have.
            tensor: where its bytes come from.
            dtype: to convert it to.
            whole: it must be read whole to be verified.
        """
        spec = TensorSpec(tensor.spec.shape, dtype or tensor.spec.dtype)
        self._specs[name] = spec

        def pieces() -> Iterator[Bytes]:
            sums = self._sums[name] = []
            for piece in _pieces(tensor, spec, name, whole=whole):
                sums.append(checksum(piece))
                yield piece

        return Outgoing(spec, pieces)

    @contextmanager
    def handing_over(self, outgoing: Mapping[str, Outgoing], *, ahead: bool) -> Iterator[Mapping[str, Outgoing]]:
        """The same, counted as it is taken.

        Args:
            outgoing: by name, in the order in which most formats ask for them.
            ahead: read each piece while the one before is written; takes memory for two.
        """
        with _Ahead(outgoing) if ahead else nullcontext() as read:

            def pieces(name: str) -> Iterator[Bytes]:
                for piece in outgoing[name].pieces() if read is None else read.pieces(name):
                    yield piece
                    self._count(len(piece))

            yield {name: replace(tensor, pieces=partial(pieces, name)) for name, tensor in outgoing.items()}

    def check(self, found: Contents) -> None:
        """Whether a file that was opened again holds what was handed over, and nothing else.

        Raises:
            CorruptionError: it does not: what it was written to, or the writer, cannot be trusted.
        """
        tensors = found.tree.tensors
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        if specs != self._specs:
            wrong = next(name for name in {**specs, **self._specs} if specs.get(name) != self._specs.get(name))
            raise _differs(found.location, wrong, _named(self._specs.get(wrong)), _named(specs.get(wrong)))

        def compare(name: str) -> int:
            sums = iter(self._sums.get(name, ()))  # a format may not ask for what has no bytes
            for start, length in cut(specs[name].num_bytes):
                expected = next(sums)
                data = tensors[name].part(start, start + length)
                if (again := checksum(data)) != expected:
                    raise _differs(found.location, name, expected, again)
            return specs[name].num_bytes

        with Workers(_READERS, "safepoint-verify") as pool:
            for num_bytes in pool.map(compare, self._specs):
                self._count(num_bytes)

    def _count(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


@final
class _Ahead:
    """Another thread reads the piece that is asked for next, if tensors are asked for in their order."""

    def __init__(self, outgoing: Mapping[str, Outgoing]) -> None:
        self._outgoing = outgoing
        self._taken: set[str] = set()
        self._pool = ThreadPoolExecutor(1, "safepoint-ahead")
        self._all = self._read()
        self._next = self._pool.submit(next, self._all, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def pieces(self, name: str) -> Iterator[Bytes]:
        """The pieces of a tensor, each of which is asked for once."""
        self._taken.add(name)
        head = self._next.result()
        if head is None or head[0] != name:
            yield from self._outgoing[name].pieces()
            return
        while head is not None and head[0] == name:
            self._next = self._pool.submit(next, self._all, None)
            yield head[1]
            head = self._next.result()

    def _read(self) -> Iterator[tuple[str, Bytes]]:
        """Everything that nobody took meanwhile; goes on only when a piece of it is taken."""
        for name, tensor in self._outgoing.items():
            if name not in self._taken and tensor.spec.num_bytes:
                for piece in tensor.pieces():
                    yield name, piece


def casts(spec: TensorSpec, dtype: str | None) -> str | None:
    """The dtype that a tensor is to be converted to, if it is one of floating-point numbers and has another."""
    if dtype is None or spec.dtype == dtype or "float" not in spec.dtype or DTYPES[spec.dtype].numpy is None:
        return None
    return dtype


def cast(data: Bytes, source: str, target: str, name: str) -> Bytes:
    """Floating-point numbers in another dtype, rounded to the nearest.

    Raises:
        UnsupportedError: a finite number would become infinite.
    """
    before = data.view(dtype_of(source))
    with np.errstate(over="ignore", invalid="ignore"):
        after = before.astype(dtype_of(target))
    infinite = np.isinf(after)
    if infinite.any():
        lost = np.isfinite(before[infinite])
        if lost.any():
            largest = float(np.abs(before[infinite][lost].astype(np.float64)).max())
            raise UnsupportedError(
                f"{name} has numbers too large for {target}; nothing was written",
                expected=f"at most {_largest(target):.6g}",
                found=f"{largest:.6g}",
                hint="--dtype bf16 or f32 holds them" if target == "float16" else "leave --dtype out",
            )
    return after.view(np.uint8)


def _largest(dtype: str) -> float:
    if dtype == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]
    return float(np.finfo(dtype).max)


def _pieces(tensor: Tensor, spec: TensorSpec, name: str, *, whole: bool) -> Iterator[Bytes]:
    """The bytes of `spec` in pieces of `BLOCK_BYTES`, the last one shorter."""
    source, target = tensor.spec.dtype, spec.dtype
    step = BLOCK_BYTES * DTYPES[source].itemsize // DTYPES[target].itemsize
    size = tensor.spec.num_bytes
    read: Callable[[int, int], NDArray[Any]] = tensor.part
    if whole or tensor.read_range is None or size <= step:
        data = tensor.read()
        read = lambda start, stop: data[start:stop]  # noqa: E731 — one line that says it all
    for start in range(0, size, step):
        piece = read(start, min(start + step, size))
        yield piece if source == target else cast(piece, source, target, name)


def _named(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else str(spec)


def _differs(file: str, name: str, expected: str, found: str) -> CorruptionError:
    return CorruptionError(
        f"{name} was not written as it is; the file was given up",
        file=file,
        name=name,
        expected=expected,
        found=found,
        hint="check the disk, and try again on another one",
    )
