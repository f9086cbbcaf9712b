"""A process thought dead that wakes up and saves gets a ConflictError; its history never mixes into its successor's."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.crash.processes import Child
from tests.crash.scenario import check_nothing_is_left

from safepoint import Checkpoint, CheckpointManager
from safepoint.errors import ConflictError
from safepoint.repository import Repository
from safepoint.store import LocalStore

ROUNDS = 8
OLD, NEW = 0, 1


def state_of(who: int) -> dict[str, np.ndarray]:
    return {"who": np.array(who), "w": np.zeros(50_000)}


def train(root: Path, who: int, say: Callable[[object], None], steps: int) -> None:
    """Goes on from the newest snapshot; says each number that it was told is durable, or that it lost."""
    state = state_of(who)
    manager = CheckpointManager(Checkpoint(state=state), root)
    start = manager.resume()
    state["who"][...] = who
    try:
        for step in range(start, start + steps):
            state["w"] += 1
            handle = manager.save(step)
            assert handle is not None
            snapshot = handle.result()
            assert snapshot is not None
            say(snapshot.number)
        manager.close()
    except ConflictError:
        say("conflict")
        try:
            manager.save(start + steps)  # and it stays so
            manager.wait()
        except ConflictError:
            say("conflict again")


def test_one_that_wakes_up_is_told_and_mixes_nothing(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for turn in range(ROUNDS):
        root = tmp_path / f"r{turn}"
        zombie = Child(lambda say, root=root: train(root, OLD, say, 300))
        deadline = time.monotonic() + 60
        while not (root / "snapshots").exists():
            assert time.monotonic() < deadline, f"seed {seed}: it saves nothing"
            time.sleep(0.002)
        stop_somewhere(zombie.pid, root, rng)
        said: list[object] = []
        train(root, NEW, said.append, 4)
        os.kill(zombie.pid, signal.SIGCONT)
        time.sleep(0.05)
        code, lines = zombie.wait()
        assert (code, lines[-2:]) == (0, ["conflict", "conflict again"]), f"seed {seed}"
        check(root, [int(line) for line in lines[:-2]], said, f"seed {seed}")


def test_one_that_commits_while_another_resumes_is_continued(tmp_path: Path, monkeypatch) -> None:
    """Its snapshot is restored, so the next save is not in conflict with it."""
    root = tmp_path / "r"
    train(root, OLD, [].append, 1)
    look = CheckpointManager._look

    def commit_after(manager: CheckpointManager) -> int:
        newest = look(manager)
        monkeypatch.undo()
        train(root, OLD, [].append, 1)
        return newest

    monkeypatch.setattr(CheckpointManager, "_look", commit_after)
    said: list[object] = []
    train(root, NEW, said.append, 2)
    assert said == [2, 3]


def stop_somewhere(pid: int, root: Path, rng: random.Random) -> None:
    """Between two saves or in the middle of one, but not in a collection: while it sleeps with that lock all wait."""
    while True:
        time.sleep(rng.uniform(0, 0.06))
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        try:
            with LocalStore(root).lock(exclusive=False, wait=False):
                return
        except ConflictError:
            os.kill(pid, signal.SIGCONT)


def check(root: Path, old: list[int], said: list[object], why: str) -> None:
    new = [number for number in said if isinstance(number, int)]
    assert len(new) == 4, why
    assert max(old, default=-1) < new[0], why
    repository = Repository(root)
    snapshots, damaged = repository.history()
    assert damaged == {}, why
    assert new == list(range(new[0], len(snapshots))), why  # nobody came between, and nothing after
    assert [snapshots[number].parent for number in new] == [new[0] - 1 if new[0] else None, *new[:-1]], why
    for number in new:
        leaves = repository.manifest(snapshots[number]).load(["state/who", "state/w"]).leaves
        assert leaves["state/who"].numpy() == NEW, why  # type: ignore[union-attr]
    assert repository.verify().ok, why


def test_one_stopped_in_the_middle_of_a_save_keeps_nobody_from_saving(tmp_path: Path) -> None:
    """It holds the shared lock: others save and restore; only collection waits for it."""
    root = tmp_path / "r"

    def stop_itself(say: Callable[[object], None]) -> None:
        repository = Repository(root)
        create = repository.store.create

        def stopping(name: str, data: bytes) -> None:
            if name == "snapshots/00000001.json":
                say("stopping")
                # This very thread: another might take a signal to the process a little later.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            create(name, data)

        repository.store.create = stopping  # type: ignore[method-assign]
        manager = CheckpointManager(Checkpoint(state=state_of(OLD)), repository)
        try:
            manager.resume()
            manager.save(1)
            manager.wait()
        except ConflictError:
            say("conflict")

    Repository(root).commit(Checkpoint(state=state_of(NEW)).capture(), step=0)
    zombie = Child(stop_itself)
    os.waitpid(zombie.pid, os.WUNTRACED)
    said: list[object] = []
    train(root, NEW, said.append, 2)
    assert said == [1, 2]
    with pytest.raises(ConflictError):
        Repository(root).collect()
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait() == (0, ["stopping", "conflict"])
    Repository(root).collect()  # what it had written is nobody's, and goes
    check_nothing_is_left(Repository(root))
