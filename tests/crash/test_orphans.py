"""A forked child that outlives its killed parent (a data-loading worker) holds no lock of a repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safepoint.store import LocalStore

_SCRIPT = """
import os, signal, sys, time
from safepoint.store import LocalStore
with LocalStore(sys.argv[1]).lock(exclusive=sys.argv[2] == "exclusive"):
    born, cry = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(cry, b"1")  # from here on the fork is complete: its hooks have run
        time.sleep(60)
        os._exit(0)
    os.read(born, 1)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_lock_dies_with_the_process_that_took_it(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        try:
            with LocalStore(tmp_path).lock(exclusive=True, wait=False):
                pass
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_a_child_lets_go_of_nothing_that_its_parent_holds(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with store.lock(exclusive=True):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        code = (
            "import sys; from safepoint.store import LocalStore\n"
            "with LocalStore(sys.argv[1]).lock(exclusive=False, wait=False): pass"
        )
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "ConflictError" in other.stderr
