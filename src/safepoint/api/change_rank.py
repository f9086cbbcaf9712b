"""How many ranks a change of a matrix has: few where it was tuned by low-rank adapters, all where it was trained.

The change is seen through random matrices from both sides, which keep its rank up to their own size, so that it is read
once, in parts, and never held whole. Singular values that rounding alone could make do not count.
Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011).
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.tree import TensorSpec, dtype_of

MOST_RANKS = 128
"""Higher ranks are told as this one."""

_SIZE = MOST_RANKS + 8
_MOST_COLUMNS = 64 << 10  # the right matrix is held in memory
_CHUNK_ROWS = 4 << 10  # the left one is made again, this many rows at a time
_PIECE_ELEMENTS = 1 << 20
_SINGLE = 2.0**-23


def has_rank(spec: TensorSpec) -> bool:
    """Whether it is a matrix, and small enough."""
    return len(spec.shape) == 2 and min(spec.shape) >= 2 and spec.shape[1] <= _MOST_COLUMNS


@final
class ChangeRank:
    """The rank of `after - before` of one matrix, stretch by stretch.

    Args:
        before: spec of the one.
        after: of the other, of the same shape.
    """

    def __init__(self, before: TensorSpec, after: TensorSpec) -> None:
        self._rows, self._columns = before.shape
        self._rounding = max(_rounding(before.dtype), _rounding(after.dtype))
        self._right = None if self._columns <= _SIZE else _random(1, 0, self._columns)
        size = (min(self._rows, _SIZE), min(self._columns, _SIZE))
        self._seen = np.zeros(size)
        self._chunk: tuple[int, NDArray[np.float32]] | None = None

    def add(self, delta: NDArray[Any], start: int) -> None:
        """Take a stretch of the change, which begins at element `start`; what never comes is zero."""
        rows = max(1, _PIECE_ELEMENTS // self._columns)
        step = rows * self._columns
        position = 0
        while position < len(delta):
            stop = min(len(delta), (start + position) // step * step + step - start)
            with np.errstate(over="ignore", invalid="ignore"):  # told at the end
                self._add_piece(delta[position:stop], start + position)
            position = stop

    def _add_piece(self, delta: NDArray[Any], start: int) -> None:
        first, last = start // self._columns, -(-(start + len(delta)) // self._columns)
        piece = np.zeros((last - first) * self._columns, np.float32)
        piece[start - first * self._columns :][: len(delta)] = delta
        matrix = piece.reshape(last - first, self._columns)
        narrow = matrix if self._right is None else matrix @ self._right
        if self._rows <= _SIZE:
            self._seen[first:last] += narrow
            return
        for chunk in range(first // _CHUNK_ROWS, -(-last // _CHUNK_ROWS)):
            low, high = max(first, chunk * _CHUNK_ROWS), min(last, (chunk + 1) * _CHUNK_ROWS)
            left = self._left(chunk)[low - chunk * _CHUNK_ROWS : high - chunk * _CHUNK_ROWS]
            self._seen += left.T @ narrow[low - first : high - first]

    def _left(self, chunk: int) -> NDArray[np.float32]:
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = (chunk, _random(2, chunk, _CHUNK_ROWS))
        return self._chunk[1]

    def rank(self, *, before: float, change: float) -> int | None:
        """The rank of what came, 0 where nothing stands out from rounding; None beyond single precision.

        Args:
            before: sum of the squares of the elements that may have been rounded.
            change: sum of the squares of the change.
        """
        count = self._rows * self._columns
        noise = self._rounding * math.sqrt(before / count) + _SINGLE * math.sqrt(change / count)
        for size in (self._rows, self._columns):
            noise *= math.sqrt(max(1.0, size / _SIZE))
        # The largest singular value of a matrix of independent errors: Davidson and Szarek, Theorem 2.13.
        noise *= 2 * sum(map(math.sqrt, self._seen.shape))
        if not np.isfinite(self._seen).all():
            return None
        values = np.linalg.svd(self._seen, compute_uv=False)
        return min(MOST_RANKS, int(np.count_nonzero(values > noise)))


def _rounding(dtype: str) -> float:
    """Half the distance of neighbours, relative; whole numbers are exact."""
    if "float" not in dtype:
        return 0.0
    if dtype in {"float16", "float32", "float64"}:
        return float(np.finfo(dtype).eps) / 2
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype_of(dtype)).eps) / 2  # type: ignore[no-untyped-call]


def _random(side: int, chunk: int, rows: int) -> NDArray[np.float32]:
    """Rows of a random matrix, the same ones every time; a vector keeps its length on average."""
    found = np.random.default_rng((side, chunk)).standard_normal((rows, _SIZE), np.float32)
    found *= np.float32(1 / math.sqrt(_SIZE))
    return found
