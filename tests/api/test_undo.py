"""A state that comes from a disk is read straight into live memory; whatever goes wrong, that is as it was before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.objects import Refusing

import safepoint
from safepoint.api import restore
from safepoint.api.ranks import Ranks
from safepoint.api.undo import Undo, apart
from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Manifest


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> list[Undo]:
    """Every state is large, and waits for the disk; what was kept is told."""
    undone: list[Undo] = []

    class Watched:
        def __init__(self, num_bytes: int) -> None:
            self.real = Undo(num_bytes)
            self.keep, self.put_back = self.real.keep, self._put_back

        def _put_back(self) -> None:
            undone.append(self.real)
            self.real.put_back()

    monkeypatch.setattr(restore, "_STAGED_BYTES", 0)
    monkeypatch.setattr(restore, "Undo", Watched)
    monkeypatch.setattr(Manifest, "waits", lambda self, names: True)
    return undone


def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"large": 2 * BLOCK_BYTES + 12, "block": BLOCK_BYTES, "small": 100, "empty": 0}
    return {name: rng.integers(0, 255, size, np.uint8) for name, size in sizes.items()}


def copies(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    safepoint.Checkpoint(state=arrays(1)).save(tmp_path / "run")
    return tmp_path / "run"


def test_it_is_restored_in_one_pass(run: Path, cold: list[Undo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "check", lambda *_, **__: pytest.fail("it was read twice"))
    live, told = arrays(2), []
    safepoint.Checkpoint(state=live).restore(run, progress=lambda done, total: told.append((done, total)))
    assert copies(live) == copies(arrays(1))
    assert cold == []
    total = 3 * BLOCK_BYTES + 112
    assert told[-1] == (total, total)
    assert told == sorted(told)


@pytest.mark.parametrize("place", [-1, -200, -BLOCK_BYTES, -2 * BLOCK_BYTES, -3 * BLOCK_BYTES])
def test_damage_anywhere_leaves_everything_as_it_was(place: int, run: Path, cold: list[Undo]) -> None:
    (pack,) = (run / "packs").iterdir()
    with pack.open("r+b") as file:
        file.seek(place, 2)
        byte = file.read(1)
        file.seek(place, 2)
        file.write(bytes([byte[0] ^ 1]))
    live = arrays(2)
    before = copies(live)
    with pytest.raises(safepoint.CorruptionError, match="is damaged"):
        safepoint.Checkpoint(state=live).restore(run)
    assert copies(live) == before
    assert len(cold) == 1


def test_whoever_breaks_it_off_finds_everything_as_it_was(run: Path, cold: list[Undo]) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    live = arrays(2)
    before = copies(live)
    with pytest.raises(KeyboardInterrupt):
        safepoint.Checkpoint(state=live).restore(run, progress=stop)
    assert copies(live) == before
    assert len(cold) == 1


def test_an_object_that_refuses_undoes_it(tmp_path: Path, cold: list[Undo]) -> None:
    from tests.api.objects import Counter

    safepoint.Checkpoint(state=arrays(1), other=Counter(7)).save(tmp_path / "run")
    live, other = arrays(2), Refusing(4)
    before = copies(live)
    with pytest.raises(safepoint.MismatchError, match="load_state_dict refused"):
        safepoint.Checkpoint(state=live, other=other).restore(tmp_path / "run")
    assert copies(live) == before
    assert len(cold) == 1


def test_tied_memory_is_kept_and_read_once(tmp_path: Path, cold: list[Undo]) -> None:
    saved, told = np.arange(1000.0), []
    safepoint.Checkpoint(state={"a": saved, "b": saved}).save(tmp_path / "run")
    live = np.zeros(1000)
    checkpoint = safepoint.Checkpoint(state={"a": live, "b": live})
    checkpoint.restore(tmp_path / "run", progress=lambda done, total: told.append((done, total)))
    assert (live == saved).all()
    assert told[-1] == (saved.nbytes, saved.nbytes)


@pytest.mark.parametrize("why", ["overlaps", "no room", "no room for all processes", "not all of it is memory"])
def test_otherwise_it_is_read_twice(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = np.arange(3000, dtype=np.uint8)
    state = {"a": both[:2000], "b": both[1000:] if why == "overlaps" else both[2000:].copy()}
    if why == "not all of it is memory":
        state["b"] = np.arange(200.0)[::2]
    if why == "no room":
        monkeypatch.setattr(restore, "spare_memory", lambda: 2 * 3000 - 1)
    if why == "no room for all processes":
        monkeypatch.setattr(restore, "spare_memory", lambda: 2 * 3000 * 4 - 1)
        monkeypatch.setattr(Ranks, "size", 4)
    checked = []
    check: Callable[..., None] = Manifest.check
    monkeypatch.setattr(Manifest, "check", lambda *a, **k: (checked.append(1), check(*a, **k))[1])
    before = copies(state)
    safepoint.Checkpoint(state=state).save(tmp_path / "run")
    both[:] = 7
    safepoint.Checkpoint(state=state).restore(tmp_path / "run")
    assert copies(state) == before
    assert checked == [1]


def test_parts_are_kept_once_and_put_back() -> None:
    memory = np.arange(100, dtype=np.uint8)
    undo = Undo(100)
    undo.keep(memory[10:20])
    memory[10:20] = 0
    undo.keep(memory[10:20])
    undo.keep(memory[:10])
    undo.keep(memory[:0])
    memory[:] = 7
    undo.put_back()
    assert memory[:20].tolist() == list(range(20))
    assert (memory[20:] == 7).all()


def test_threads_keep_parts_at_the_same_time() -> None:
    memory = np.random.default_rng(0).integers(0, 255, 64 << 12, np.uint8)
    before = memory.copy()
    undo = Undo(len(memory))

    def keep(first: int) -> None:
        for number in range(first, 64, 4):
            part = memory[number << 12 : (number + 1) << 12]
            undo.keep(part)
            part[:] = 0

    threads = [threading.Thread(target=keep, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not memory.any()
    undo.put_back()
    assert (memory == before).all()


def test_which_memory_lies_apart() -> None:
    memory = np.zeros(10, np.uint8)
    assert apart([memory[5:], memory[:5], memory[3:3], np.zeros(3, np.uint8)])
    assert not apart([memory[4:], memory[:5]])
    assert not apart([memory, memory])
