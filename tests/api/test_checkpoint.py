"""Checkpoint: what may be tracked, and saving again and again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.api.objects import Counter, arrays, same

import safepoint


@pytest.mark.parametrize("bare", [3, 0.1, "text", None, b"bytes", (1, 2), True])
def test_a_bare_value_is_refused_at_construction(bare: Any) -> None:
    with pytest.raises(safepoint.UnsupportedError, match="put it in a dict you track"):
        safepoint.Checkpoint(value=bare)


def test_what_cannot_be_captured_is_refused_by_its_path() -> None:
    with pytest.raises(safepoint.UnsupportedError, match="state: 'a/1'"):
        safepoint.Checkpoint(state={"a": [1, lambda: None]})
    with pytest.raises(safepoint.UnsupportedError, match="thing cannot be captured"):
        safepoint.Checkpoint(thing=object())


def test_nothing_is_pickled_even_if_it_could_be(tmp_path: Path) -> None:
    class Sneaky:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    state: dict[str, Any] = {"x": 1}
    checkpoint = safepoint.Checkpoint(state=state)
    state["sneaky"] = Sneaky()
    with pytest.raises(safepoint.UnsupportedError, match="state: 'sneaky'"):
        checkpoint.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_name_of_the_random_state_is_reserved() -> None:
    with pytest.raises(safepoint.UnsupportedError, match="random"):
        safepoint.Checkpoint(random={})


def test_saving_again_and_again_adds_snapshots_and_counts_steps(tmp_path: Path) -> None:
    state = arrays()
    checkpoint = safepoint.Checkpoint(state=state)
    for epoch in range(3):
        state["epoch"] = epoch
        snapshot = checkpoint.save(tmp_path / "run")
        assert (snapshot.number, snapshot.step) == (epoch, epoch)
    again = safepoint.Checkpoint(state=state).save(tmp_path / "run")
    assert (again.number, again.parent) == (3, 2)


def test_a_save_writes_only_what_changed(tmp_path: Path) -> None:
    state = {"frozen": np.random.default_rng(0).random(1 << 20), "moving": np.zeros(1000)}
    checkpoint = safepoint.Checkpoint(state=state)
    checkpoint.save(tmp_path / "run")
    state["moving"] += 1
    assert checkpoint.save(tmp_path / "run").written_bytes < 50_000


def test_every_kind_of_state_comes_back_in_a_new_checkpoint(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        return {
            "state": arrays(seed),
            "rng": np.random.default_rng(seed),
            "old_rng": np.random.RandomState(seed),
            "python": random.Random(seed),
            "counter": Counter(seed),
            "array": np.full((2, 2), seed, order="F"),
            "many": {"counters": [Counter(seed), Counter(seed + 1)], "note": f"seed {seed}"},
        }

    first, second = make(1), make(2)
    first["rng"].random(3)
    safepoint.Checkpoint(**first).save(tmp_path / "run")
    safepoint.Checkpoint(**second).restore(tmp_path / "run")
    assert same(first["state"], second["state"])
    assert same(first["array"], second["array"])
    assert first["counter"].count == second["counter"].count == 1
    assert [c.count for c in second["many"]["counters"]] == [1, 2]
    assert second["many"]["note"] == "seed 1"
    assert first["rng"].random() == second["rng"].random()
    assert first["old_rng"].rand() == second["old_rng"].rand()
    assert first["python"].random() == second["python"].random()


def test_arrays_are_restored_in_place(tmp_path: Path) -> None:
    state = arrays(1)
    weight = state["weight"]
    checkpoint = safepoint.Checkpoint(state=state)
    checkpoint.save(tmp_path / "run")
    before = weight.copy()
    weight[:] = 0
    checkpoint.restore(tmp_path / "run")
    assert state["weight"] is weight
    assert np.array_equal(weight, before)


VALUES: list[Any] = [
    None, True, 0, -1, 2**63, -(2**70), 10**5000, 0.0, -0.0, 1.5, float("inf"), float("-inf"), 1e-320, 2 - 3j,
    "", "ünïcode ✓", "\ud800", b"", b"\x00\xff", "x" * 100_000, b"y" * 100_000, 1 << 600_000,
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(VALUES)))
def test_every_value_comes_back_exactly(tmp_path: Path, index: int) -> None:
    value = VALUES[index]
    safepoint.Checkpoint(state={"value": value, 1: "int key", "1x": (1, [2, {}], ())}).save(tmp_path / "run")
    live: dict[Any, Any] = {"value": "other", 1: "", "1x": None}
    safepoint.Checkpoint(state=live).restore(tmp_path / "run")
    assert type(live["value"]) is type(value)
    assert live["value"] == value
    if isinstance(value, float):
        assert repr(live["value"]) == repr(value), "the sign of zero counts"
    assert live[1] == "int key"
    assert live["1x"] == (1, [2, {}], ())


def test_nan_comes_back_as_nan(tmp_path: Path) -> None:
    safepoint.Checkpoint(state={"value": float("nan")}).save(tmp_path / "run")
    live = {"value": 0.0}
    safepoint.Checkpoint(state=live).restore(tmp_path / "run")
    assert live["value"] != live["value"]


def test_scalars_and_strange_layouts_come_back_exactly(tmp_path: Path) -> None:
    base = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    state = {"t": base.T, "strided": base[:, ::2], "scalar": np.float32(3), "zero_d": np.array(5.0), "none": base[:0]}
    safepoint.Checkpoint(state=state).save(tmp_path / "run")
    live = {
        "t": np.zeros((4, 3, 2), np.int32),
        "strided": np.zeros((2, 2, 4), np.int32),
        "scalar": np.float32(0),
        "zero_d": np.array(0.0),
        "none": np.zeros((0, 3, 4), np.int32),
    }
    safepoint.Checkpoint(state=live).restore(tmp_path / "run")
    assert np.array_equal(live["t"], base.T)
    assert np.array_equal(live["strided"], base[:, ::2])
    assert type(live["scalar"]) is np.float32
    assert live["scalar"] == 3
    assert live["zero_d"] == 5


def test_two_keys_that_spell_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(safepoint.UnsupportedError, match="two leaves"):
        safepoint.Checkpoint(state={1: 0, "1": 1}).save(tmp_path / "run")


def test_a_container_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(safepoint.UnsupportedError, match="nested deeper"):
        safepoint.Checkpoint(state=state)


def test_saving_into_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(safepoint.ExistsError, match="no repository"):
        safepoint.Checkpoint(state={"x": 1}).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_progress_tells_bytes_done_and_in_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    state = {"w": np.ones(1 << 20)}
    checkpoint = safepoint.Checkpoint(state=state)
    checkpoint.save(tmp_path / "run", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8 << 20, 8 << 20)
    calls.clear()
    checkpoint.restore(tmp_path / "run", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8 << 20, 8 << 20)


@pytest.mark.parametrize("saved", [0, 10, 100])
@pytest.mark.parametrize("live", [0, 10, 100])
def test_a_history_comes_back_however_long_it_was(tmp_path: Path, saved: int, live: int) -> None:
    first: dict[str, Any] = {
        "losses": [1 / (n + 1) for n in range(saved)],
        "steps": list(range(saved)),
        "mixed": [1, 2.0],
    }
    safepoint.Checkpoint(state=first).save(tmp_path / "run")
    second: dict[str, Any] = {"losses": [0.0] * live, "steps": [7] * live, "mixed": [True] * live}
    losses = second["losses"]
    safepoint.Checkpoint(state=second).restore(tmp_path / "run")
    assert same(second, first)
    assert second["losses"] is losses


def test_a_long_history_is_one_leaf() -> None:
    state = {"losses": [0.5] * 10_000, "big": [2**70] * 100, "flags": [True] * 100}
    tree = safepoint.Checkpoint(state=state).capture()
    assert "state/losses" in tree.tensors
    assert "state/big/0" in tree.leaves
    assert "state/flags/0" in tree.leaves
