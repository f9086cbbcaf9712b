"""What many elements are like, as one row of doubles: rows of the parts of a tensor add up to the row of the whole.

Invariant: elements are looked at in runs that stay in a core's cache, in single precision where they have no more, and
what comes of a run is summed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.tree import DTYPES, dtype_of

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Which quantiles are told."""

EXACT_ELEMENTS = 64 << 10
"""Parts of up to so many elements are sorted whole; of larger ones, at least `SAMPLE_ELEMENTS`, evenly spaced."""

SAMPLE_ELEMENTS = 16 << 10

_STRIDES = (3, 7, 13, 31, 61, 127, 251, 509, 1021)  # primes, so that a sample is not of one column

# Kept of each part: enough to put the quantiles of a tensor together from those of its parts.
_SKETCH = np.array([0.001, 0.01, 0.025, *(step / 20 for step in range(1, 20)), 0.975, 0.99, 0.999])
_TOLD = [int(np.argmin(abs(_SKETCH - quantile))) for quantile in QUANTILES]
_GRID = (np.arange(500) + 0.5) / 500

# Where in a row what stands: counts, bounds of the finite elements, their mean, the squares of their distances to it.
FINITE, NANS, INFINITIES, ZEROS, MINIMUM, MAXIMUM, MEAN, SQUARES = range(8)
_PLAIN = 8

WIDTH = _PLAIN + len(_SKETCH)
"""Numbers in a row: these, and the quantiles."""

_RUN_ELEMENTS = 32 << 10
_DOT_ELEMENTS = 4 << 10  # a longer product would be split over OpenBLAS' threads, or round too much
_SAFE = (1e-15, 1e15)  # magnitudes whose squares add up in single precision


def wide_runs(data: NDArray[Any], dtype: str) -> Iterator[NDArray[Any]]:
    """The elements in runs of single or double precision; of complex ones, their magnitudes."""
    for start in range(0, len(data), _RUN_ELEMENTS):
        run = data[start : start + _RUN_ELEMENTS]
        if run.dtype in {np.float32, np.float64}:
            yield run
        elif dtype == "bfloat16":  # its bits are the upper half of a float's
            yield (run.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif run.dtype.kind == "c":
            yield np.abs(run.astype(np.complex128))
        elif run.dtype.itemsize == 1:
            yield _bytes_as_floats(dtype)[run.view(np.uint8)]
        else:
            yield run.astype(np.float32 if dtype == "float16" else np.float64)


@cache
def _bytes_as_floats(dtype: str) -> NDArray[np.float32]:
    """What each of the 256 elements of a dtype of one byte is; `ml_dtypes` converts them one by one."""
    every = np.arange(256, dtype=np.uint8)
    return (every != 0 if dtype == "bool" else every.view(dtype_of(dtype))).astype(np.float32)


def has_numbers(dtype: str) -> bool:
    """Whether the elements of a dtype are numbers to NumPy."""
    return DTYPES[dtype].numpy is not None


@final
class Numbers:
    """The row of a part of a tensor, run by run.

    Args:
        elements: how many will come.
    """

    def __init__(self, elements: int) -> None:
        self._stride = _stride(elements)
        self._next = 0  # where in the coming run the next element of the sample is
        self._rows: list[list[float]] = []
        self._sample: list[NDArray[Any]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Take the next run, as `wide_runs` gives it."""
        sampled = values[self._next :: self._stride]
        self._next = (self._next - len(values)) % self._stride
        low, high = float(values.min()), float(values.max())
        nans = infinities = 0
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(values)
            nans = int(np.count_nonzero(np.isnan(values)))
            infinities = len(values) - int(np.count_nonzero(finite)) - nans
            values, sampled = values[finite], sampled[np.isfinite(sampled)]
            low, high = (float(values.min()), float(values.max())) if len(values) else (math.inf, -math.inf)
        zeros = len(values) - int(np.count_nonzero(values != 0)) if low <= 0 <= high else 0
        mean, squares = _spread(values, low, high) if len(values) else (0.0, 0.0)
        self._rows.append([len(values), nans, infinities, zeros, low, high, mean, squares])
        self._sample.append(sampled.copy())

    def row(self) -> NDArray[np.float64]:
        """The row of all that came."""
        row = np.zeros(WIDTH)
        if self._rows:
            row[:_PLAIN] = _total(np.array(self._rows))
            sample = np.concatenate(self._sample)
            sample.sort()
            row[_PLAIN:] = _at(sample, _SKETCH) if len(sample) else row[MINIMUM]
        return row


def _stride(elements: int) -> int:
    if elements <= EXACT_ELEMENTS:
        return 1
    return max(stride for stride in _STRIDES if stride * SAMPLE_ELEMENTS <= elements or stride == _STRIDES[0])


def _spread(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Mean of finite elements, and the sum of the squares of their distances to it."""
    if low == high:
        return low, 0.0
    largest = max(-low, high)
    if values.dtype == np.float32 and not _SAFE[0] < largest < _SAFE[1]:
        values = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # squares, or sums, beyond double precision
        total, squares = float(np.add.reduce(values)), dot(values, values)
        mean = total / len(values)
        around = squares - total * mean
        if around < squares / 2:  # the mean is large beside the spread: what is left of the difference is rounding
            away = values - values.dtype.type(mean)
            offset = float(np.add.reduce(away)) / len(away)
            mean, around = float(values.dtype.type(mean)) + offset, dot(away, away) - len(away) * offset * offset
    return mean, max(0.0, around) if math.isfinite(squares) else math.inf


def dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The product of two runs: in their own precision, stretch by stretch, and in double precision from there."""
    whole = len(first) // _DOT_ELEMENTS * _DOT_ELEMENTS
    rows = np.vecdot(*(run[:whole].reshape(-1, _DOT_ELEMENTS) for run in (first, second)))
    return float(np.add.reduce(rows, dtype=np.float64)) + float(np.vecdot(first[whole:], second[whole:]))


def _total(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows without quantiles, added up."""
    total: NDArray[np.float64] = rows.sum(axis=0)
    counts = rows[:, FINITE]
    total[MINIMUM], total[MAXIMUM] = rows[:, MINIMUM].min(), rows[:, MAXIMUM].max()
    count = total[FINITE]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.sum(rows[:, MEAN] * (counts / count))) if count else 0.0
        if total[MINIMUM] == total[MAXIMUM]:
            mean = total[MINIMUM]
        total[MEAN] = mean
        total[SQUARES] += float(np.sum(counts * (rows[:, MEAN] - mean) ** 2))
    return total


def _at(ordered: NDArray[Any], quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of sorted elements, between neighbours by proportion."""
    places = quantiles * (len(ordered) - 1)
    below = places.astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    share = places - below
    found: NDArray[np.float64] = ordered[below].astype(np.float64) * (1 - share)
    found += ordered[above].astype(np.float64) * share
    return found


def add_up(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The row of a tensor from those of its parts."""
    if len(rows) == 1:
        return rows[0]
    if not rows:
        return np.zeros(WIDTH)
    found = np.empty(WIDTH)
    found[:_PLAIN] = _total(np.array([row[:_PLAIN] for row in rows]))
    parts = [row for row in rows if row[FINITE]]
    found[_PLAIN:] = _merged(parts) if parts else 0.0
    return found


def _merged(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Quantiles of parts together: each stands for itself with points as many as it has elements, in proportion."""
    probabilities = np.array([0.0, *_SKETCH, 1.0])
    points = np.array([np.interp(_GRID, probabilities, [row[MINIMUM], *row[_PLAIN:], row[MAXIMUM]]) for row in rows])
    weights = np.repeat([row[FINITE] / len(_GRID) for row in rows], len(_GRID))
    order = np.argsort(points, axis=None)
    ordered, heavy = points.ravel()[order], weights[order]
    middles = (np.cumsum(heavy) - heavy / 2) / heavy.sum()
    found: NDArray[np.float64] = np.interp(_SKETCH, middles, ordered)
    return found


def quantiles_of(row: NDArray[np.float64]) -> tuple[float, ...]:
    """What a row says of `QUANTILES`."""
    return tuple(float(value) for value in row[_PLAIN:][_TOLD])
