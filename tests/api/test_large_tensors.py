"""A tensor over 4 GiB, saved and restored: no offset and no length on the way is 32 bits wide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import safepoint
from safepoint.repository import Repository
from safepoint.store import LocalStore


class _SparseStore:
    """A local store that leaves out what is zero: a large file takes no space, nor the memory that it is read into."""

    def __init__(self, folder: Path) -> None:
        self._store = LocalStore(folder)
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def sink(self, name: str) -> _SparseSink:
        (self._folder / name).parent.mkdir(exist_ok=True)
        return _SparseSink(self._folder / name)

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        with (self._folder / name).open("rb", buffering=0) as file:
            try:
                hole = os.lseek(file.fileno(), offset, os.SEEK_DATA) >= offset + len(data)
            except OSError:  # no data from here on
                hole = True
        if not hole:
            self._store.read_into(name, offset, data)
        elif data.any():
            data[:] = 0


class _SparseSink:
    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        if data.any():
            assert os.pwrite(self._file.fileno(), data, offset) == len(data)

    def reserve(self, num_bytes: int) -> None:
        pass

    def commit(self, num_bytes: int) -> None:
        self._file.truncate(num_bytes)

    def abort(self) -> None:
        self._file.close()


def test_a_tensor_over_four_gibibytes_comes_back(tmp_path: Path) -> None:
    size = (1 << 32) + 5
    places = [0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, size - 1]
    large = np.zeros(size, np.uint8)
    large[places] = range(1, 7)
    repository = Repository(_SparseStore(tmp_path / "run"))  # type: ignore[arg-type]
    snapshot = safepoint.Checkpoint(state={"large": large, "after": np.arange(3)}).save(repository)
    assert snapshot.num_bytes == size + 24
    del large
    state = {"large": np.zeros(size, np.uint8), "after": np.zeros(3, np.int64)}
    safepoint.Checkpoint(state=state).restore(repository)
    assert state["large"][places].tolist() == list(range(1, 7))
    assert state["after"].tolist() == [0, 1, 2]
