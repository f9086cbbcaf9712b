"""A part of a lazy tensor is what NumPy says it is, and little more than it is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from safepoint import UnsupportedError
from safepoint.tree import Tensor, bytes_of, take
from safepoint.tree import slicing as module


def lazy(array: np.ndarray, spans: list[tuple[int, int]] | None = None) -> Tensor:
    data = bytes_of(array)

    def part(start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= len(data)
        if spans is not None:
            spans.append((start, stop))
        return data[start:stop]

    return Tensor(Tensor.of(array).spec, lambda: data, read_range=part)


@given(st.data())
def test_any_basic_index_is_numpys(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    old = module._SHORT_ROW_BYTES, module._PIECE_BYTES
    module._SHORT_ROW_BYTES, module._PIECE_BYTES = data.draw(st.sampled_from([(0, 1), (8, 16), old]))
    try:
        found = take(lazy(array), index)
    finally:
        module._SHORT_ROW_BYTES, module._PIECE_BYTES = old
    expected = array[index]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "index, most",
    [(slice(10), 10 * 40_000), (-1, 40_000), ((slice(None), 0), 1000 * 16_000), ((3, slice(5, 7)), 8)],
    ids=str,
)
def test_little_more_than_the_part_is_read(index: object, most: int) -> None:
    spans: list[tuple[int, int]] = []
    array = np.arange(10_000_000, dtype=np.float32).reshape(1000, 10_000)
    assert np.array_equal(take(lazy(array, spans), index), array[index])  # type: ignore[index]
    assert sum(stop - start for start, stop in spans) <= most


def test_other_indices_say_what_to_do() -> None:
    tensor = lazy(np.zeros((3, 4)))
    for index in (np.array([0, 1]), [0], None, True, "x", 1.0):
        with pytest.raises(UnsupportedError, match="is not indexed by"):
            take(tensor, index)
    for index in (3, (0, -5), (0, 0, 0), (..., ...)):
        with pytest.raises(IndexError):
            take(tensor, index)
