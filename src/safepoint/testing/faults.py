"""Faults on purpose: a store that dies, or refuses, at its n-th operation.

Run a scenario once with `at=None` to count its operations, then once for each of them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import StoreError
from safepoint.store import Sink, Store

Fault: TypeAlias = Literal["dies before", "dies after", "no space", "input/output error"]
"""What happens at the chosen operation: the process dies before or after it, or the operation is refused."""

T = TypeVar("T")
_ERRORS = {"no space": errno.ENOSPC, "input/output error": errno.EIO}


class SimulatedDeath(BaseException):
    """The process is gone: nothing that runs later, cleaning up included, reaches the store."""


@final
class FaultyStore:
    """A store that fails at one operation and is `store` otherwise.

    Args:
        store: the real one; after a death, open it again to see what is left.
        at: which operation fails, counted from 0; None for none.
        fault: see `Fault`.
        lasting: a refusal goes on for ever, instead of once.

    Attributes:
        operations: what was asked for, in order.
    """

    def __init__(
        self, store: Store, *, at: int | None = None, fault: Fault = "dies before", lasting: bool = False
    ) -> None:
        self.location = store.location
        self.operations: list[str] = []
        self._store = store
        self._at = at
        self._fault: Fault = fault
        self._lasting = lasting
        self._dead = False
        self._mutex = threading.Lock()

    def run(self, what: str, operation: Callable[[], T]) -> T:
        """Do an operation, or what the fault makes of it."""
        with self._mutex:
            if self._dead:
                raise SimulatedDeath(what)
            number = len(self.operations)
            self.operations.append(what)
            hit = self._at is not None and (number == self._at or (self._lasting and number > self._at))
            if hit and self._fault == "dies before":
                self._dead = True
                raise SimulatedDeath(what)
            if hit and self._fault in _ERRORS:
                number = _ERRORS[self._fault]
                raise StoreError(f"cannot {what}", error=OSError(number, os.strerror(number)), path=what)
            try:
                return operation()
            finally:
                if hit:
                    self._dead = True
                    raise SimulatedDeath(what)

    def exists(self) -> bool:
        return self.run("exists", self._store.exists)

    def create(self, name: str, data: bytes) -> None:
        self.run(f"create {name}", lambda: self._store.create(name, data))

    def sink(self, name: str) -> Sink:
        return _FaultySink(self, name, self.run(f"sink {name}", lambda: self._store.sink(name)))

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        return self.run(f"read {name}", lambda: self._store.read(name, at_most=at_most))

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        self.run(f"read_into {name}", lambda: self._store.read_into(name, offset, data))

    def size(self, name: str) -> int:
        return self.run(f"size {name}", lambda: self._store.size(name))

    def list(self, folder: str) -> list[str]:
        return self.run(f"list {folder}", lambda: self._store.list(folder))

    def delete(self, name: str) -> None:
        self.run(f"delete {name}", lambda: self._store.delete(name))

    def clean(self) -> int:
        return self.run("clean", self._store.clean)

    @contextmanager
    def lock(self, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
        held = self.run("lock", lambda: self._store.lock(exclusive=exclusive, wait=wait))
        with held:  # given back even by the dead: the operating system sees to that
            yield

    @property
    def is_dead(self) -> bool:
        return self._dead


@final
class _FaultySink:
    def __init__(self, store: FaultyStore, name: str, sink: Sink) -> None:
        self._store = store
        self._name = name
        self._sink = sink

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self._store.run(f"write {self._name}", lambda: self._sink.write(offset, data))

    def reserve(self, num_bytes: int) -> None:
        self._store.run(f"reserve {self._name}", lambda: self._sink.reserve(num_bytes))

    def commit(self, num_bytes: int) -> None:
        self._store.run(f"commit {self._name}", lambda: self._sink.commit(num_bytes))

    def abort(self) -> None:
        if not self._store.is_dead:
            self._sink.abort()
