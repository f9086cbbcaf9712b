"""System calls that fail when they should: `os` as it is on a bad day."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    "open", "pwritev", "posix_fallocate", "ftruncate", "fsync", "link", "replace", "unlink", "mkdir", "preadv",
    "listdir", "close", "stat", "scandir", "statvfs",
)  # fmt: skip
WRITES = ("open", "pwritev", "posix_fallocate", "ftruncate", "fsync", "link", "replace", "unlink", "mkdir", "close")
KINDS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EMFILE", "EROFS", "ESTALE", "short")


@dataclass
class BadDay:
    """The `at`-th call that concerns `root` fails, and with `lasting` all that follow; None counts only.

    A failed `fsync` of a file loses its data, as Linux does: what was dirty is dropped and called clean.
    """

    root: str
    at: int | None = None
    kind: str = "EIO"
    lasting: bool = False
    calls: tuple[str, ...] = CALLS
    last_act: Callable[[], object] | None = None
    done: list[str] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def hits(self, name: str, target: Any) -> bool:
        if not self._concerns(target):
            return False
        with self.mutex:
            number = len(self.done)
            self.done.append(name)
        return self.at is not None and (number == self.at or (self.lasting and number > self.at))

    def _concerns(self, target: Any) -> bool:
        try:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else os.fspath(target)
        except (OSError, TypeError):
            return False
        return str(path).startswith(self.root)

    def refuse(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.kind == "KILL":
            if self.last_act is not None:
                self.last_act()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "short":
            if name in {"pwritev", "preadv"}:
                descriptor, (buffer,), offset = arguments
                view = memoryview(buffer).cast("B")
                return real(descriptor, [view[: max(1, len(view) // 2)]], offset)
            return real(*arguments)
        if name == "fsync":
            _lose(arguments[0])
        if name == "close":  # Linux closes the descriptor even when it reports an error
            real(*arguments)
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number))


@contextmanager
def bad_day(day: BadDay) -> Iterator[BadDay]:
    """Puts the failing calls in place of `os`'s own."""
    real = {name: getattr(os, name) for name in day.calls}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if arguments and day.hits(name, arguments[0]):
                return day.refuse(name, real[name], arguments)
            return real[name](*arguments, **options)

        return call

    try:
        for name in day.calls:
            setattr(os, name, wrap(name))
        yield day
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _lose(descriptor: int) -> None:
    """Drop what was written to a file, its length apart."""
    path = Path(f"/proc/self/fd/{descriptor}")
    if path.is_file():
        with path.open("r+b", buffering=0) as file:
            file.write(bytes(path.stat().st_size))
