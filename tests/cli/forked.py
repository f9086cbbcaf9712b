"""Children of `verify-resume` by fork: they begin where a new interpreter would be after its imports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from typing import IO, Any

import numpy as np

from safepoint.cli.exactness.child import main

DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT


class Popen:
    """What `subprocess.Popen` does for `[python, "-c", code, *arguments]`, where the code calls `child.main`."""

    def __init__(self, command: list[str], *, stdout: IO[bytes], env: dict[str, str], **_options: Any) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _be(command, stdout, env)
            except BaseException:  # noqa: BLE001 — a child must never come back into the tests
                traceback.print_exc()
            finally:
                os._exit(99)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _be(command: list[str], output: IO[bytes], environment: dict[str, str]) -> None:
    """The child's life and end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    sys.argv = command[2:]
    random.seed()  # a new interpreter's are its own
    np.random.seed()
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    threading._shutdown()  # saves in the background are waited for, as at any end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
