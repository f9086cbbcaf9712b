"""A background save in trouble: a slow disk, a full one, a kill in the middle, a second save meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import safepoint
from safepoint.errors import StoreError
from safepoint.repository import pack
from safepoint.store import LocalStore, MemoryStore, aligned_buffer
from safepoint.store.files import TEMPORARY

_MIB = 1 << 20


class TroubledStore:
    """A store whose large files are slow to write, wait at a gate, or fail after some bytes.

    Args:
        store: the real one.
        bytes_per_second: how fast packs are written, all threads together.
    """

    def __init__(self, store: Any, *, bytes_per_second: float | None = None) -> None:
        self.store = store
        self.rate = bytes_per_second
        self.gate = threading.Event()
        self.gate.set()
        self.fails_after: int | None = None
        self.written = 0
        self.mutex = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def sink(self, name: str) -> Any:
        return _TroubledSink(self, self.store.sink(name))


class _TroubledSink:
    def __init__(self, owner: TroubledStore, sink: Any) -> None:
        self.owner, self.sink = owner, sink

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

    def write(self, offset: int, data: np.ndarray) -> None:
        owner = self.owner
        owner.gate.wait(20)
        with owner.mutex:
            owner.written += len(data)
            if owner.fails_after is not None and owner.written > owner.fails_after:
                raise StoreError("cannot write", error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path="pack")
            if owner.rate:
                time.sleep(len(data) / owner.rate)
        self.sink.write(offset, data)


def state(num_mib: int = 24) -> dict[str, np.ndarray]:
    return {f"w{i}": np.full(8 * _MIB, i, np.uint8) for i in range(num_mib // 8)}


def saved(repository: safepoint.Repository, step: int) -> set[int]:
    """Every value in a snapshot's tensors."""
    live = {name: np.zeros_like(array) for name, array in state().items()}
    safepoint.Checkpoint(state=live).restore(repository, at=step)
    return {int(value) for array in live.values() for value in np.unique(array)}


def test_a_second_save_waits_for_the_first_and_holds_the_moment_of_its_own_call() -> None:
    store = TroubledStore(MemoryStore())
    live = state()
    repository = safepoint.Repository(store)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=live), repository, random=False)

    def fill(value: int) -> None:
        for array in live.values():
            array[:] = value

    store.gate.clear()
    fill(1)
    first = manager.save()
    assert first is not None
    arena = manager._staging._arena
    fill(2)
    handles: list[Any] = []
    second = threading.Thread(target=lambda: handles.append(manager.save()))
    second.start()
    time.sleep(0.1)
    assert second.is_alive()
    assert not first.done
    assert manager._staging._arena is arena  # one copy of the state, whatever is asked
    store.gate.set()
    second.join()
    fill(3)
    handles[0].result()
    manager.close()
    assert (saved(repository, 0), saved(repository, 1)) == ({1}, {2})


def test_a_save_that_is_not_durable_yet_can_be_skipped() -> None:
    store = TroubledStore(MemoryStore())
    repository = safepoint.Repository(store)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state(8)), repository)
    store.gate.clear()
    handle = None
    for step in range(10):
        if step == 7:
            store.gate.set()
            assert handle is not None
            handle.result()
        if handle is None or handle.done:
            handle = manager.save(step)
    manager.close()
    steps = [snapshot.step for snapshot in repository.snapshots]
    assert steps[:2] == [0, 7]


@pytest.mark.parametrize("fails_after", [0, 10 * _MIB, 23 * _MIB])
def test_a_full_disk_in_a_background_save_costs_that_save_and_frees_everything(
    tmp_path: Path, fails_after: int
) -> None:
    store = TroubledStore(LocalStore(tmp_path / "run"))
    live = state()
    repository = safepoint.Repository(store)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=live), repository, random=False)
    manager.save().result()
    for array in live.values():
        np.add(array, 100, out=array)
    store.written, store.fails_after = 0, fails_after
    handle = manager.save()
    while not handle.done:
        time.sleep(0.01)
    with pytest.raises(StoreError, match="cannot write") as caught:
        manager.save()
    assert caught.value.errno == errno.ENOSPC
    assert [snapshot.step for snapshot in repository.snapshots] == [0]
    assert list((tmp_path / "run").rglob(f"{TEMPORARY}*")) == []
    assert len(list((tmp_path / "run" / "packs").iterdir())) == 1
    assert len(manager._staging._arena) == 0
    assert saved(repository, 0) == {0, 1, 2}
    store.fails_after = None
    snapshot = manager.save().result()
    assert (snapshot.number, snapshot.parent) == (1, 0)
    assert saved(repository, snapshot.step) == {100, 101, 102}
    manager.close()


def test_the_error_of_a_failed_save_holds_no_copy_of_the_state() -> None:
    """A loop may keep the handle, and with it the error, for as long as it likes."""
    store = TroubledStore(MemoryStore())
    store.fails_after = 10 * _MIB
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state()), safepoint.Repository(store))
    handle = manager.save()
    error = handle._future.exception()
    traceback = error.__traceback__
    held = []
    while traceback is not None:
        held += [v for v in traceback.tb_frame.f_locals.values() if type(v).__name__ in {"Staged", "StateTree"}]
        traceback = traceback.tb_next
    assert held == []
    with pytest.raises(StoreError):
        manager.close()


def test_a_slow_disk_slows_saves_and_takes_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a loop saves: a few write buffers, one copy of the state, one thread that commits."""
    buffers: list[int] = []

    def counted(num_bytes: int) -> np.ndarray:
        buffers.append(num_bytes)
        return aligned_buffer(num_bytes)

    monkeypatch.setattr(pack, "aligned_buffer", counted)
    store = TroubledStore(LocalStore(tmp_path / "run"), bytes_per_second=400 * _MIB)
    live = state(120)
    repository = safepoint.Repository(store)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=live), repository, keep=[], random=False)
    arena = 0
    for step in range(3):
        for array in live.values():
            array[:] = step + 1
        started = len(buffers)
        manager.save(step)
        arena = max(arena, len(manager._staging._arena))
        assert sum(thread.name == "safepoint-save" for thread in threading.enumerate()) <= 1
        assert sum(thread.name.startswith("safepoint-write") for thread in threading.enumerate()) <= 3
        assert sum(buffers[started:]) <= 100 * _MIB
    manager.close()
    assert arena <= 120 * _MIB + 2 * _MIB
    fresh = {name: np.zeros_like(array) for name, array in live.items()}
    for step in range(3):
        safepoint.Checkpoint(state=fresh).restore(repository, at=step)
        assert all((array == step + 1).all() for array in fresh.values())


_KILLED = """
import sys, numpy as np, safepoint
from safepoint.store import LocalStore
sys.path.insert(0, sys.argv[2])
from tests.api.test_background import TroubledStore, state
live = state()
store = TroubledStore(LocalStore(sys.argv[1]))
manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=live), safepoint.Repository(store), random=False)
manager.resume()
manager.save().result()
store.rate = 4 << 20  # from now on a save takes seconds
for array in live.values():
    array += 50
manager.save()
print("writing", flush=True)
manager.wait()
"""


def test_a_kill_in_the_middle_of_a_background_save_leaves_the_old_history(tmp_path: Path) -> None:
    """What it left is removed by the first collection after it."""
    run = tmp_path / "run"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _KILLED, str(run), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        while not list(run.rglob(f"{TEMPORARY}*")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    repository = safepoint.Repository(run)
    assert [snapshot.step for snapshot in repository.snapshots] == [0]
    assert saved(repository, 0) == {0, 1, 2}
    assert list(run.rglob(f"{TEMPORARY}*"))
    live = state()
    with safepoint.CheckpointManager(safepoint.Checkpoint(state=live), run, keep=[safepoint.Latest(1)]) as manager:
        assert manager.resume() == 1
        manager.save()
    assert list(run.rglob(f"{TEMPORARY}*")) == []
    assert [snapshot.step for snapshot in repository.snapshots] == [1]
