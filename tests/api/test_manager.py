"""CheckpointManager: the loop, the background, the lineage, and going on."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.objects import Counter, arrays, same

import safepoint
from safepoint.errors import StoreError
from safepoint.repository import Repository
from safepoint.store import MemoryStore


def train(directory: Any, *, total: int = 12, die_after: int | None = None, **options: Any) -> dict[str, Any]:
    """A loop whose result depends on every bit of state that must be saved."""
    state: dict[str, Any] = {"w": np.zeros(8), "history": []}
    rng, counter = np.random.default_rng(7), Counter()
    checkpoint = safepoint.Checkpoint(state=state, rng=rng, counter=counter)
    with safepoint.CheckpointManager(checkpoint, directory, **options) as manager:
        for step in manager.steps(total):
            counter.count += 1
            state["w"] += rng.standard_normal(8) * counter.count + np.random.rand() + random.random()
            state["history"].append(float(state["w"].sum()))
            manager.save(metrics={"loss": 1 / (step + 1)})
            if step == die_after:
                break
    return state


def seed() -> None:
    np.random.seed(3)
    random.seed(3)


@pytest.mark.parametrize("die_after", [0, 4, 10])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, die_after: int) -> None:
    seed()
    reference = train(tmp_path / "reference")
    seed()
    train(tmp_path / "run", die_after=die_after)
    np.random.seed(99)
    random.seed(99)
    assert same(train(tmp_path / "run"), reference)


def test_random_false_leaves_random_state_alone(tmp_path: Path) -> None:
    train(tmp_path / "run", die_after=2, random=False)
    names = Repository(tmp_path / "run").manifest(Repository(tmp_path / "run").resolve()).tree.names()
    assert "random" not in names


def test_restore_does_not_touch_random_state(tmp_path: Path) -> None:
    train(tmp_path / "run", die_after=2)
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    safepoint.Checkpoint(counter=Counter()).restore(tmp_path / "run")
    assert np.random.rand() == expected


def test_the_state_at_the_call_is_saved_whatever_changes_after(tmp_path: Path) -> None:
    state = {"w": np.zeros(1 << 18), "note": "before"}
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run", keep=[])
    for step in range(20):
        state["w"][:] = step
        handle = manager.save()
        assert handle is not None
        state["w"][:] = -1
    manager.close()
    for step in range(20):
        live = {"w": np.ones(1 << 18), "note": ""}
        safepoint.Checkpoint(state=live).restore(tmp_path / "run", at=step)
        assert (live["w"] == step).all()


def test_a_handle_has_two_moments(tmp_path: Path) -> None:
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=arrays()), tmp_path / "run")
    handle = manager.save(metrics={"loss": np.float32(0.5)}, tags=["first"])
    assert handle is not None
    handle.staged()
    snapshot = handle.result()
    assert snapshot is not None
    assert (snapshot.step, dict(snapshot.metrics), snapshot.tags) == (0, {"loss": 0.5}, ("first",))
    assert handle.stall_seconds >= 0
    manager.close()


class _FailingStore:
    """A memory store whose commits fail on demand."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self.fail = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, name: str, data: bytes) -> None:
        if self.fail and name.startswith("snapshots/"):
            raise StoreError("the disk is full", hint="make room")
        self._store.create(name, data)


@pytest.mark.parametrize("where", ["save", "wait", "close", "result"])
def test_an_error_in_the_background_is_raised_at_the_next_call(where: str) -> None:
    store = _FailingStore()
    state = arrays()
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), Repository(store))  # type: ignore[arg-type]
    manager.save()
    manager.wait()
    store.fail = True
    handle = manager.save()
    assert handle is not None
    while not handle.done:
        pass
    call = {"save": manager.save, "wait": manager.wait, "close": manager.close, "result": handle.result}[where]
    with pytest.raises(StoreError, match="the disk is full"):
        call()
    if where != "close":
        store.fail = False
        again = manager.save()
        assert again is not None
        snapshot = again.result()
        assert snapshot is not None
        assert (snapshot.number, snapshot.parent) == (1, 0)
        manager.close()


def test_an_error_in_the_loop_is_not_hidden_by_one_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    store = _FailingStore()
    store.fail = True

    def loop() -> None:
        with safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), Repository(store)) as manager:  # type: ignore[arg-type]
            manager.save()
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "safepoint"), pytest.raises(ZeroDivisionError):
        loop()
    assert "the disk is full" in caplog.text


def test_a_first_save_over_another_history_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", total=3)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state={"x": 1}), tmp_path / "run")
    with pytest.raises(safepoint.ExistsError, match=r"resume\(\).*fresh=True.*another path"):
        manager.save()


def test_fresh_starts_a_new_lineage(tmp_path: Path) -> None:
    train(tmp_path / "run", total=3)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state={"x": 1}), tmp_path / "run")
    assert manager.resume(fresh=True) == 0
    handle = manager.save()
    assert handle is not None
    snapshot = handle.result()
    assert snapshot is not None
    assert (snapshot.number, snapshot.parent, snapshot.step) == (3, None, 0)
    manager.close()


def test_a_job_that_was_thought_dead_cannot_mix_its_history(tmp_path: Path) -> None:
    def manager() -> safepoint.CheckpointManager:
        return safepoint.CheckpointManager(safepoint.Checkpoint(state=arrays()), tmp_path / "run")

    zombie = manager()
    zombie.save()
    zombie.wait()
    successor = manager()
    assert successor.resume() == 1
    successor.save()
    successor.close()
    zombie.save()
    with pytest.raises(safepoint.ConflictError, match="another writer"):
        zombie.wait()
    assert [s.number for s in Repository(tmp_path / "run").snapshots] == [0, 1]


def test_resume_returns_the_step_to_do_next(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(state=arrays())
    manager = safepoint.CheckpointManager(checkpoint, tmp_path / "run")
    assert manager.resume() == 0
    manager.save(41)
    manager.close()
    assert safepoint.CheckpointManager(checkpoint, tmp_path / "run").resume() == 42


def test_policies_decide_when_and_the_last_step_always_saves(tmp_path: Path) -> None:
    state = {"x": 0}
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(state=state), tmp_path / "run", save=[safepoint.EverySteps(4)], keep=[]
    )
    saved = [step for step in manager.steps(10) if manager.save()]
    manager.close()
    assert saved == [3, 7, 9]
    assert manager.should_save(13)
    assert not manager.should_save(12)


def test_the_last_step_is_saved_even_if_the_loop_forgets(tmp_path: Path) -> None:
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state={"x": 0}), tmp_path / "run")
    assert list(manager.steps(3)) == [0, 1, 2]
    assert [s.step for s in Repository(tmp_path / "run").snapshots] == [2]
    assert list(manager.steps(3)) == []


def test_default_retention_keeps_the_latest_five_and_the_best(tmp_path: Path) -> None:
    losses = [0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=arrays()), tmp_path / "run")
    for step, loss in enumerate(losses):
        manager.save(step, metrics={"loss": loss})
    manager.close()
    assert [s.step for s in Repository(tmp_path / "run").snapshots] == [1, 4, 5, 6, 7, 8]
    assert len(list((tmp_path / "run" / "manifests").iterdir())) == 6


def test_resume_falls_back_over_damage_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed()
    reference = train(tmp_path / "reference")
    seed()
    train(tmp_path / "run", die_after=6)
    newest = max((tmp_path / "run" / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    caplog.set_level(logging.INFO, "safepoint")
    assert same(train(tmp_path / "run"), reference)
    shown = caplog.text
    assert "passed over snapshot 6" in shown
    assert newest.name in shown
    assert "step 5" in shown


@pytest.mark.parametrize("folder", ["packs", "manifests", "snapshots"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "empty"])
def test_resume_survives_any_damage_to_the_newest(tmp_path: Path, folder: str, how: str) -> None:
    seed()
    train(tmp_path / "run", die_after=6)
    newest = max((tmp_path / "run" / folder).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    data = newest.read_bytes()
    if how == "missing":
        newest.unlink()
    else:
        flipped = bytes([*data[:-5], data[-5] ^ 4, *data[-4:]])
        newest.write_bytes({"truncated": data[: len(data) // 2], "flipped": flipped, "empty": b""}[how])
    counter = Counter()
    checkpoint = safepoint.Checkpoint(
        state={"w": np.zeros(8), "history": []}, rng=np.random.default_rng(), counter=counter
    )
    with safepoint.CheckpointManager(checkpoint, tmp_path / "run") as manager:
        assert manager.resume() == 6
        assert counter.count == 6
        handle = manager.save()
        assert handle is not None
        assert handle.result() is not None


def test_resume_with_nothing_whole_is_an_error(tmp_path: Path) -> None:
    train(tmp_path / "run", total=2)
    for pack in (tmp_path / "run" / "packs").iterdir():
        pack.unlink()
    state = arrays()
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(state={"w": np.zeros(8), "history": []}), tmp_path / "run"
    )
    with pytest.raises(safepoint.CorruptionError, match="none is whole") as caught:
        manager.resume()
    assert "no such file" in str(caught.value) or "damaged" in str(caught.value)
    assert same(state, arrays())


def test_an_explicit_reference_never_falls_back(tmp_path: Path) -> None:
    train(tmp_path / "run", die_after=3)
    newest = max((tmp_path / "run" / "snapshots").iterdir())
    newest.write_bytes(b"")
    with pytest.raises(safepoint.CorruptionError):
        safepoint.Checkpoint(counter=Counter()).restore(tmp_path / "run", at="latest")


def test_config_is_stored_and_differences_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def manager(**config: Any) -> safepoint.CheckpointManager:
        return safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", config=config)

    caplog.set_level(logging.INFO, "safepoint")
    first = manager(lr=0.1, data={"path": Path("a"), "sizes": (1, 2)})
    first.save()
    first.close()
    assert Repository(tmp_path / "run").resolve().config == {"lr": 0.1, "data": {"path": "a", "sizes": [1, 2]}}
    manager(lr=0.2, data={"path": "a", "sizes": [1, 2]}, new=1).resume()
    shown = caplog.text
    assert "config.lr: 0.2 now, 0.1 in the snapshot" in shown
    assert "config.new: only now" in shown
    assert "sizes" not in shown


def test_keep_live_keeps_what_the_new_run_set(tmp_path: Path) -> None:
    state = {"optimizer": {"lr": 0.1, "m": 1}}
    first = safepoint.CheckpointManager(safepoint.Checkpoint(**state), tmp_path / "run")
    first.save()
    first.close()
    live = {"lr": 0.5, "m": 0}
    second = safepoint.CheckpointManager(safepoint.Checkpoint(optimizer=live), tmp_path / "run")
    second.resume(keep_live=["optimizer.lr"])
    assert live == {"lr": 0.5, "m": 1}
    with pytest.raises(safepoint.MismatchError, match="matches no name"):
        second.resume(keep_live=["optimizer.momentum"])


def test_unknown_keywords_are_type_errors(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path, max_to_keep=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not tracked"):
        safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run").save(params={})


def test_a_signal_finishes_the_step_and_saves(tmp_path: Path) -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        state = {"x": 0}
        manager = safepoint.CheckpointManager(
            safepoint.Checkpoint(state=state), tmp_path / "run", save=[safepoint.EverySteps(100)], signals=["SIGTERM"]
        )
        done = []
        for step in manager.steps(50):
            state["x"] = step
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            manager.save()
            done.append(step)
        assert manager.should_stop
        manager.close()
        assert done[-1] == 7
        assert [s.step for s in Repository(tmp_path / "run").snapshots] == [7]
        assert heard == [signal.SIGTERM], "the handler before is called too"
        assert signal.getsignal(signal.SIGTERM) is not None
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(heard) == 2, "and is put back"
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_signals_outside_the_main_thread_are_refused(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def make() -> None:
        try:
            safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), tmp_path / "run", signals=["SIGTERM"])
        except safepoint.UnsupportedError as error:
            caught.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert caught


_EXIT = """
import numpy as np, safepoint, sys
state = {"w": np.random.default_rng(0).random(4_000_000)}
manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), sys.argv[1])
manager.save()
"""


def test_exit_waits_for_pending_saves(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _EXIT, str(tmp_path / "run")], check=True)
    live = {"w": np.zeros(4_000_000)}
    safepoint.Checkpoint(state=live).restore(tmp_path / "run")
    assert np.array_equal(live["w"], np.random.default_rng(0).random(4_000_000))


def test_manager_restore_waits_and_keeps_the_lineage(tmp_path: Path) -> None:
    state = arrays(1)
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run")
    manager.save(metrics={"loss": 0.1})
    state.update(arrays(2))
    manager.save(metrics={"loss": 0.2})
    manager.restore(at="best", select=["state/weight"])
    assert np.array_equal(state["weight"], arrays(1)["weight"])
    assert state["epoch"] == 2
    handle = manager.save()
    assert handle is not None
    snapshot = handle.result()
    assert snapshot is not None
    assert snapshot.parent == 1
    manager.close()


def test_leaving_the_loop_early_does_not_lose_an_error() -> None:
    store = _FailingStore()
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(s={"x": 1}), Repository(store))  # type: ignore[arg-type]
    for _ in manager.steps(5):
        store.fail = True
        manager.save()
        break
    with pytest.raises(StoreError, match="the disk is full"):
        manager.close()
