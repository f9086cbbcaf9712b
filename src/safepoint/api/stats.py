"""Statistics of tensors, read piece by piece: what a person looks at first, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Workers
from safepoint.tree import DTYPES, Tensor, dtype_of

_PIECE_BYTES = BLOCK_BYTES  # a block is read and verified as a whole: smaller pieces would read it again and again
_RUN_ELEMENTS = 64 << 10  # stays in a core's cache, in double precision too
_THREADS = 2


@final
@dataclass(frozen=True, slots=True)
class Stats:
    """What a tensor's elements are like; of complex ones, their magnitudes. None where there are none.

    Attributes:
        minimum: of the finite elements.
        maximum: of the finite elements.
        mean: of the finite elements.
        std: their standard deviation, not corrected.
        norm: their Euclidean norm.
        zeros: elements that are zero.
        nans: elements that are NaN.
        infinities: elements that are infinite.
        elements: all of them.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    norm: float | None
    zeros: int
    nans: int
    infinities: int
    elements: int

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, the worst first, in words."""
        found = []
        if self.nans:
            found.append(f"{self.nans:,} NaN")
        if self.infinities:
            found.append(f"{self.infinities:,} infinite")
        if self.elements > 1 and self.zeros == self.elements:
            found.append("all zero")
        elif self.elements > 1 and self.minimum == self.maximum and not self.nans and not self.infinities:
            found.append("all the same")
        return tuple(found)


def measure(tensors: Mapping[str, Tensor]) -> Mapping[str, Stats]:
    """Statistics of each tensor that has numbers, two at a time; a few megabytes of memory for each.

    Raises:
        CorruptionError: one cannot be read as it was written.
    """
    wanted = {name: tensor for name, tensor in tensors.items() if DTYPES[tensor.spec.dtype].numpy is not None}
    with Workers(_THREADS, "safepoint-stats") as pool:
        return dict(zip(wanted, pool.map(_measure, wanted.values()), strict=True))


def _measure(tensor: Tensor) -> Stats:
    running = _Running()
    for piece in _pieces(tensor):
        for start in range(0, len(piece), _RUN_ELEMENTS):
            running.add(piece[start : start + _RUN_ELEMENTS])
    return running.stats(tensor.spec.num_elements)


def _pieces(tensor: Tensor) -> Iterable[NDArray[Any]]:
    dtype = dtype_of(tensor.spec.dtype)
    if tensor.read_range is None:
        yield tensor.read().view(dtype)
        return
    for start in range(0, tensor.spec.num_bytes, _PIECE_BYTES):
        yield tensor.part(start, min(start + _PIECE_BYTES, tensor.spec.num_bytes)).view(dtype)


class _Running:
    """Sums over what came so far, in double precision."""

    def __init__(self) -> None:
        self._minimum, self._maximum = math.inf, -math.inf
        self._sum = self._squares = 0.0
        self._zeros = self._nans = self._infinities = self._finite = 0

    def add(self, data: NDArray[Any]) -> None:
        """Take the next elements."""
        values = np.abs(data).astype(np.float64) if data.dtype.kind == "c" else data.astype(np.float64)
        squares = float(np.dot(values, values))
        if not math.isfinite(squares):
            finite = np.isfinite(values)
            nans = int(np.isnan(values).sum())
            self._nans += nans
            self._infinities += len(values) - int(finite.sum()) - nans
            values = values[finite]
            with np.errstate(over="ignore"):  # finite ones whose squares are not
                squares = float(np.dot(values, values))
        if len(values) == 0:
            return
        self._finite += len(values)
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))
        self._sum += float(values.sum())
        self._squares += squares
        self._zeros += len(values) - int(np.count_nonzero(values))

    def stats(self, elements: int) -> Stats:
        """What they amount to."""
        if not self._finite:
            return Stats(None, None, None, None, None, 0, self._nans, self._infinities, elements)
        mean = self._sum / self._finite
        variance = max(0.0, self._squares / self._finite - mean * mean)
        return Stats(
            self._minimum,
            self._maximum,
            mean,
            math.sqrt(variance) if math.isfinite(variance) else None,
            math.sqrt(self._squares) if math.isfinite(self._squares) else None,
            self._zeros,
            self._nans,
            self._infinities,
            elements,
        )
