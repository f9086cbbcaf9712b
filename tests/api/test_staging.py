"""Staging memory: reused, touched beside other work, and never live."""

from __future__ import annotations

import numpy as np

import safepoint
from safepoint.api import staging
from safepoint.api.staging import Staging
from safepoint.tree import Branch, StateTree, Tensor


def _tree(*arrays: np.ndarray) -> StateTree:
    return StateTree({str(i): Tensor.of(array) for i, array in enumerate(arrays)}, Branch("dict"))


def test_a_copy_holds_what_was_there_whatever_happens_to_the_original() -> None:
    large, small = np.arange(1 << 20, dtype=np.float32), np.arange(3)
    staged = Staging().copy(_tree(large, small))
    assert staged.done.done()
    large[:] = 0
    small[:] = 0
    assert staged.tree.tensors["0"].numpy()[-1] == (1 << 20) - 1
    assert staged.tree.tensors["1"].numpy().tolist() == [0, 1, 2]


def test_tied_tensors_are_copied_once_and_stay_tied() -> None:
    array = np.zeros(1 << 20)
    staged = Staging().copy(_tree(array, array)).tree.tensors
    assert np.shares_memory(staged["0"].numpy(), staged["1"].numpy())


def test_reserved_memory_is_the_memory_of_the_first_copy(monkeypatch) -> None:
    monkeypatch.setattr(staging, "_WORTH_TOUCHING", 0)
    memory = Staging()
    array = np.ones(1 << 18)
    memory.reserve(array.nbytes * 2)
    arena = memory._arena
    staged = memory.copy(_tree(array)).tree.tensors["0"].numpy()
    assert np.shares_memory(staged, arena)
    assert (staged == 1).all()


def test_a_manager_reserves_enough_for_its_first_save(tmp_path, monkeypatch) -> None:
    """Random state and the edges of many small tensors included; else the save would get untouched memory."""
    monkeypatch.setattr(staging, "_WORTH_TOUCHING", 0)
    state = {f"w{i}": np.ones(1001, np.float32) for i in range(300)}
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(state=state), tmp_path / "run")
    manager.resume()
    arena = manager._staging._arena
    assert len(arena) >= 300 * 4004
    manager.save().result()
    assert manager._staging._arena is arena
    manager.close()


def test_freed_memory_comes_back_with_the_next_copy(monkeypatch) -> None:
    monkeypatch.setattr(staging, "_WORTH_TOUCHING", 0)
    memory = Staging()
    memory.reserve(1 << 20)
    memory.free()
    assert len(memory._arena) == 0
    assert memory.copy(_tree(np.ones(4))).tree.tensors["0"].numpy().tolist() == [1, 1, 1, 1]
