"""NumPy's own files, compared with what NumPy reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import safepoint

ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">f8"), "both": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "scalar": np.float32(2.5), "empty": np.zeros((0, 5), np.int8), "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]), "half": np.ones((3, 1, 2), np.float16),
}  # fmt: skip


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **ARRAYS, text=np.array("größe"), texts=np.array([b"a", b"bc"]))
    with safepoint.open(tmp_path / "a.npz") as tensors:
        assert list(tensors) == list(ARRAYS)
        for name, array in ARRAYS.items():
            found = tensors[name].numpy()
            assert (found.shape, found.dtype.kind, found.dtype.itemsize) == (
                array.shape,
                array.dtype.kind,
                array.itemsize,
            )
            assert np.array_equal(found, array)
            assert np.array_equal(
                tensors[name][..., :1] if array.ndim else tensors[name][()], array[..., :1] if array.ndim else array
            )
        assert tensors.plain == {"text": "größe", "texts/0": b"a", "texts/1": b"bc"}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_single_array(version: tuple[int, int], tmp_path: Path, bytes_read: Callable[[], int]) -> None:
    array = np.arange(100_000, dtype=np.int64).reshape(1000, 100)
    with (tmp_path / "x").open("wb") as file:
        np.lib.format.write_array(file, array, version)
    bytes_read()
    with safepoint.open(tmp_path / "x") as tensors:
        assert np.array_equal(tensors[""][7], array[7])
        assert bytes_read() < 5000
        assert np.array_equal(tensors[""].numpy(), array)
