"""A deterministic scheduler: real code in several tasks, of which one runs at a time, from operation to operation.

The same dice give the same schedule again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import ConflictError
from safepoint.store import MemoryStore, Sink

Task = Callable[[], None]


class Schedule:
    """Runs tasks, one at a time, in an order thrown with dice: any, or by priorities that change now and then."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.trace: list[str] = []
        self.by_priority = rng.random() < 0.5
        self._priorities: list[int] = []
        self._threads: dict[int, int] = {}  # thread → task
        self._turns: list[threading.Lock] = []  # each held, but for an instant, when its task's turn comes
        self._over = _held()
        self._stuck = False
        self._ready: list[Callable[[], bool] | None] = []
        self._errors: list[BaseException] = []

    def run(self, tasks: list[Task]) -> None:
        """All of them, to their ends.

        Raises:
            BaseException: what a task raised.
        """
        self._turns = [_held() for _ in tasks]
        self._ready = [lambda: True for _ in tasks]
        self._priorities = self.rng.sample(range(len(tasks)), len(tasks))
        lives = [_threads().submit(self._live, number, task) for number, task in enumerate(tasks)]
        self._hand_on(None)
        self._over.acquire()
        for turn in self._turns if self._stuck else ():
            turn.release()
        wait(lives)
        for error in self._errors:
            raise error

    def pause(self, what: str, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others run before `what`, at least until `ready()`; a thread that is no task just goes on."""
        task = self._threads.get(threading.get_ident())
        if task is None:
            return
        self._ready[task] = ready
        if self._hand_on(task) != task:
            self._turns[task].acquire()
        if self._stuck:
            raise AssertionError("all wait for each other")
        self.trace.append(f"{task}: {what}")

    def _hand_on(self, current: int | None) -> int | None:
        """Throw dice about who is next, and let him run; who throws may be it himself, and then just goes on."""
        able = [n for n, ready in enumerate(self._ready) if ready is not None and ready()]
        if not able:
            if not self._stuck:
                self._stuck = any(ready is not None for ready in self._ready)
                self._over.release()
            return None
        if self.rng.random() < 0.1:
            self.rng.shuffle(self._priorities)
        chosen = max(able, key=self._priorities.__getitem__) if self.by_priority else self.rng.choice(able)
        if chosen != current:
            self._turns[chosen].release()
        return chosen

    def _live(self, number: int, task: Task) -> None:
        self._threads[threading.get_ident()] = number
        self._turns[number].acquire()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 — raised again by run
            self._errors.append(error)
        self._ready[number] = None
        del self._threads[threading.get_ident()]
        self._hand_on(None)


@cache
def _threads() -> ThreadPoolExecutor:
    """The same for all schedules: a thread takes longer to start than a task to end."""
    return ThreadPoolExecutor(8)


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class ScheduledStore:
    """A store in memory that lets others run before each of its operations.

    Args:
        store: where the files are.
        schedule: who runs next.
        locks: without, nobody holds anybody off: what a collection would be that only looks before it deletes.
    """

    def __init__(self, store: MemoryStore, schedule: Schedule, *, locks: bool = True) -> None:
        self.location = store.location
        self._store = store
        self._schedule = schedule
        self._locks = locks
        self._readers = 0
        self._exclusive = False

    def exists(self) -> bool:
        self._schedule.pause("exists")
        return self._store.exists()

    def create(self, name: str, data: bytes) -> None:
        self._schedule.pause(f"create {name}")
        self._store.create(name, data)

    def sink(self, name: str) -> Sink:
        return _ScheduledSink(self._store.sink(name), self._schedule, name)

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        self._schedule.pause(f"read {name}")
        return self._store.read(name, at_most=at_most)

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        self._schedule.pause(f"read_into {name}")
        self._store.read_into(name, offset, data)

    def size(self, name: str) -> int:
        self._schedule.pause(f"size {name}")
        return self._store.size(name)

    def list(self, folder: str) -> list[str]:
        self._schedule.pause(f"list {folder}")
        return self._store.list(folder)

    def delete(self, name: str) -> None:
        self._schedule.pause(f"delete {name}")
        self._store.delete(name)

    def clean(self) -> int:
        self._schedule.pause("clean")
        return self._store.clean()

    @contextmanager
    def lock(self, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
        def free() -> bool:
            return not self._locks or not (self._exclusive or (exclusive and self._readers))

        self._schedule.pause(f"lock {'exclusive' if exclusive else 'shared'}", free if wait else lambda: True)
        if not free():
            raise ConflictError(f"{self.location} is in use")
        self._exclusive = self._exclusive or exclusive
        self._readers += not exclusive
        try:
            yield
        finally:
            self._exclusive = self._exclusive and not exclusive
            self._readers -= not exclusive


class _ScheduledSink:
    def __init__(self, sink: Sink, schedule: Schedule, name: str) -> None:
        self._sink = sink
        self._schedule = schedule
        self._name = name
        self.write, self.reserve, self.abort = sink.write, sink.reserve, sink.abort

    def commit(self, num_bytes: int) -> None:
        self._schedule.pause(f"commit {self._name}")
        self._sink.commit(num_bytes)
