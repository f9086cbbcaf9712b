"""Child processes for tests: forked, so that a kill costs milliseconds, and observed through a pipe."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable


class Child:
    """A forked process that runs `work(say)`; what it says arrives line by line."""

    def __init__(self, work: Callable[[Callable[[object], None]], None]) -> None:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads of the test runner only wait
            self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reading)
                work(lambda what: void(os.write(writing, f"{what}\n".encode())))
                os._exit(0)
            except BaseException:  # noqa: BLE001 — the parent sees the exit code
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        self._lines = os.fdopen(reading)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, list[str]]:
        """Exit code (negative: the signal) and all that it said."""
        with self._lines:
            lines = self._lines.read().splitlines()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines


def void(_: object) -> None:
    pass
