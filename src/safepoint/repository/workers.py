"""Worker threads for a stretch of work.

`concurrent.futures.ThreadPoolExecutor` takes no work once the interpreter begins to exit, which is just when a pending
background save must still be finished; these do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, final

_LITTLE_BYTES = 1 << 20  # starting threads and waking them takes longer than this much work

T = TypeVar("T")
Item = TypeVar("Item")


@final
class Workers:
    """A few threads that run what is submitted, in order; leaving the context waits for all of it.

    Args:
        count: of threads, started when there is work for them.
        name: of the threads, for debuggers.
        num_bytes: that all the work is about, if known. A little is done at once, in the caller's own thread.
    """

    def __init__(self, count: int, name: str, *, num_bytes: int | None = None) -> None:
        self._count = 0 if num_bytes is not None and num_bytes < _LITTLE_BYTES else count
        self._name = name
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run `function(*arguments)` in a thread, or before this returns."""
        future: Future[T] = Future()
        if self._count == 0:
            _fulfil(future, lambda: function(*arguments))
            return future
        self._tasks.put((future, lambda: function(*arguments)))
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()
        return future

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
        """`function` of each item, in order; after an error the rest is not begun."""
        if self._count == 0:
            yield from map(function, items)
            return
        futures = [self.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            if future.set_running_or_notify_cancel():
                _fulfil(future, work)
            del future, work, task


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 — it is the future's to raise
        future.set_exception(error)
    else:
        future.set_result(result)
