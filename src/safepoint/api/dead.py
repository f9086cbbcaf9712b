"""Rows and columns of which every element is zero: units that nothing reaches, or that reach nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from safepoint.tree import TensorSpec


def may_be_dead(spec: TensorSpec, zeros: int) -> bool:
    """Whether so many zeros fill a row (along the first axis) or a column (along the last), and not everything."""
    if len(spec.shape) < 2 or zeros >= spec.num_elements:
        return False
    return any(2 <= size <= zeros for size in (math.prod(spec.shape[1:]), math.prod(spec.shape[:-1])))


def dead_lines(spec: TensorSpec, runs: Iterable[NDArray[np.bool_]]) -> tuple[int, int]:
    """How many rows, along the first axis, and columns, along the last, are zero throughout.

    Lines of one element do not count.

    Args:
        spec: of the tensor.
        runs: which elements are not zero, one stretch after the other.
    """
    rows, columns = spec.shape[0], spec.shape[-1]
    row, column = math.prod(spec.shape[1:]), math.prod(spec.shape[:-1])
    row_lives, column_lives = np.zeros(rows, bool), np.zeros(columns, bool)
    start = 0
    for run in runs:
        _mark(row_lives, run, start, row)
        _fold(column_lives, run, start % columns)
        start += len(run)
    dead_rows = int(np.count_nonzero(~row_lives)) if row >= 2 else 0
    return dead_rows, int(np.count_nonzero(~column_lives)) if column >= 2 else 0


def _mark(lives: NDArray[np.bool_], run: NDArray[np.bool_], start: int, row: int) -> None:
    first, last = start // row, (start + len(run) - 1) // row
    begins = np.arange(first, last + 1) * row - start
    begins[0] = 0
    lives[first : last + 1] |= np.logical_or.reduceat(run, begins)


def _fold(lives: NDArray[np.bool_], run: NDArray[np.bool_], offset: int) -> None:
    columns = len(lives)
    head = min(len(run), (columns - offset) % columns)
    lives[offset : offset + head] |= run[:head]
    whole = (len(run) - head) // columns * columns
    if whole:
        lives |= run[head : head + whole].reshape(-1, columns).any(axis=0)
    rest = run[head + whole :]
    lives[: len(rest)] |= rest
