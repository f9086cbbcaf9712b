"""Part of a tensor, by NumPy's basic indexing, reading little more than the part.

Invariant: memory is the result and one piece of at most 16 MiB (or one row, where a row is larger).
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import UnsupportedError
from safepoint.tree.dtypes import dtype_of
from safepoint.tree.leaves import Tensor

_SHORT_ROW_BYTES = 16 << 10
"""Rows up to this are read whole: a disk gives no less, and a call for each would cost more."""
_PIECE_BYTES = 16 << 20


def take(tensor: Tensor, index: Any) -> NDArray[Any]:
    """`tensor.numpy()[index]` in fresh memory, for whole numbers, slices and `...`.

    Raises:
        IndexError: outside the tensor, or too many indices.
        UnsupportedError: an index of another kind.
    """
    shape = tensor.spec.shape
    wanted = index if isinstance(index, tuple) else (index,)
    ranges, numbers = _ranges(wanted, shape)
    out = np.empty([len(r) for r in ranges], dtype_of(tensor.spec.dtype))
    if out.size:
        _fill(out, tensor, ranges, shape, 0)
    return out[tuple(0 if axis in numbers else slice(None) for axis in range(len(shape)))]


def _ranges(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[list[range], set[int]]:
    """One range an axis, and the axes that a number takes away."""
    dots = [position for position, item in enumerate(index) if isinstance(item, EllipsisType)]
    if len(index) - len(dots) > len(shape) or len(dots) > 1:
        raise IndexError(f"{len(index)} indices for a tensor of shape {list(shape)}")
    gap = dots[0] if dots else len(index)
    missing = len(shape) - (len(index) - len(dots))
    items = [*index[:gap], *[slice(None)] * missing, *index[gap + 1 :]]
    ranges: list[range] = []
    numbers: set[int] = set()
    for axis, (item, size) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            ranges.append(range(*item.indices(size)))
            continue
        number = _whole_number(item)
        if not -size <= number < size:
            raise IndexError(f"index {number} is outside axis {axis} of shape {list(shape)}")
        numbers.add(axis)
        ranges.append(range(number % size, number % size + 1))
    return ranges, numbers


def _whole_number(item: Any) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(item, bool | np.bool_):
            return operator.index(item)
    raise UnsupportedError(
        f"a lazy tensor is not indexed by {type(item).__name__}",
        expected="whole numbers, slices and ...",
        hint="tensor.numpy() reads it all, and takes any index",
    )


def _fill(out: NDArray[Any], tensor: Tensor, ranges: Sequence[range], shape: Sequence[int], start: int) -> None:
    """Fill `out` with the part of the tensor of `shape` that begins at byte `start`."""
    itemsize = out.dtype.itemsize
    if not ranges:
        out[...] = tensor.part(start, start + itemsize).view(out.dtype)[0]
        return
    rows, inner = ranges[0], ranges[1:]
    row_bytes = math.prod(shape[1:]) * itemsize
    whole = all(r == range(size) for r, size in zip(inner, shape[1:], strict=True))
    if inner and row_bytes > _SHORT_ROW_BYTES and not (whole and rows.step == 1):
        for position, row in enumerate(rows):
            _fill(out[position], tensor, inner, shape[1:], start + row * row_bytes)
        return
    count = max(1, _PIECE_BYTES // max(1, row_bytes * abs(rows.step)))
    inner_slices = tuple(map(_slice, inner))
    for position in range(0, len(rows), count):
        piece = rows[position : position + count]
        low, high = min(piece[0], piece[-1]), max(piece[0], piece[-1]) + 1
        data = tensor.part(start + low * row_bytes, start + high * row_bytes)
        array = data.view(out.dtype).reshape(high - low, *shape[1:])
        steps = _slice(range(piece[0] - low, piece[-1] - low + piece.step, piece.step))
        out[position : position + len(piece)] = array[(steps, *inner_slices)]


def _slice(indices: range) -> slice:
    return slice(indices.start, None if indices.stop < 0 else indices.stop, indices.step)
