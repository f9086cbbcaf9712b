"""A store in memory: for tests, and the simplest statement of what a store does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import ConflictError, CorruptionError, ExistsError, NotFoundError, StoreError
from safepoint.store.protocol import check_file_name, check_length


@final
class MemoryStore:
    """Files in a dictionary; safe for threads, gone with the process."""

    def __init__(self, location: str = "memory") -> None:
        self.location = location
        self.files: dict[str, bytes] = {}
        self._mutex = threading.Condition()
        self._readers = 0
        self._exclusive = False

    def exists(self) -> bool:
        return bool(self.files)

    def create(self, name: str, data: bytes) -> None:
        with self._mutex:
            if check_file_name(name) in self.files:
                raise ExistsError(f"{name} exists already in {self.location}")
            self.files[name] = bytes(data)

    def sink(self, name: str) -> _MemorySink:
        return _MemorySink(self, check_file_name(name))

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        try:
            data = self.files[check_file_name(name)]
        except KeyError:
            raise NotFoundError(f"no {name} in {self.location}") from None
        if at_most is not None:
            check_length(name, len(data), at_most)
        return data

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        found = self.read(name)[offset : offset + len(data)]
        if len(found) != len(data):
            raise CorruptionError(
                f"{name} ends early",
                file=name,
                expected=f"{offset + len(data)} bytes",
                found=f"{len(self.read(name))} bytes",
            )
        data[:] = np.frombuffer(found, np.uint8)

    def size(self, name: str) -> int:
        return len(self.read(name))

    def list(self, folder: str) -> list[str]:
        prefix = f"{check_file_name(folder)}/"
        return sorted(name[len(prefix) :] for name in list(self.files) if name.startswith(prefix))

    def delete(self, name: str) -> None:
        self.files.pop(check_file_name(name), None)

    def clean(self) -> int:
        return 0

    @contextmanager
    def lock(self, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
        with self._mutex:
            while self._exclusive or (exclusive and self._readers):
                if not wait:
                    raise ConflictError(f"{self.location} is in use")
                self._mutex.wait()
            self._exclusive = exclusive
            self._readers += not exclusive
        try:
            yield
        finally:
            with self._mutex:
                self._exclusive = False
                self._readers -= not exclusive
                self._mutex.notify_all()


@final
class _MemorySink:
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._data = bytearray()
        self._open = True
        self._mutex = threading.Lock()

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self._check_alive()
        with self._mutex:
            self.reserve(offset + len(data))
            self._data[offset : offset + len(data)] = data.tobytes()

    def reserve(self, num_bytes: int) -> None:
        self._data.extend(bytes(max(0, num_bytes - len(self._data))))

    def commit(self, num_bytes: int) -> None:
        self._check_alive()
        self.reserve(num_bytes)
        self._store.create(self._name, bytes(self._data[:num_bytes]))
        self.abort()

    def abort(self) -> None:
        self._open = False
        self._data.clear()

    def _check_alive(self) -> None:
        if not self._open:
            raise StoreError(f"cannot write {self._name}: it was committed or given up", path=self._name)
