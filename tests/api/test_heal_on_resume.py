"""A frozen backbone with one flipped bit does not cost the run: what was built again before resuming still holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.repository.damaging import blocks_of

from safepoint import Checkpoint, CheckpointManager
from safepoint.errors import CorruptionError
from safepoint.repository import Repository


def objects() -> dict[str, dict[str, np.ndarray]]:
    backbone = {"w": np.random.default_rng(0).standard_normal((300, 20))}  # as loaded from a file before training
    return {"backbone": backbone, "head": {"w": np.zeros(500, np.float32)}}


def trained(root: Path) -> None:
    state = objects()
    with CheckpointManager(Checkpoint(**state), root) as manager:
        manager.resume()
        for step in range(3):
            state["head"]["w"] += 1
            manager.save(step)


def flip(root: Path, name: str) -> None:
    (block,) = blocks_of(Repository(root), "latest", name)
    path = root / "packs" / f"{block.pack}.safetensors"
    data = bytearray(path.read_bytes())
    data[block.offset + 9] ^= 2
    path.write_bytes(data)


def test_the_newest_snapshot_is_healed_and_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "r")
    flip(tmp_path / "r", "backbone/w")
    with pytest.raises(CorruptionError):
        Checkpoint(backbone=objects()["backbone"]).restore(tmp_path / "r")  # an explicit restore says so
    state = objects()
    with CheckpointManager(Checkpoint(**state), tmp_path / "r") as manager:
        assert manager.resume() == 3
    assert (state["head"]["w"] == 3).all()
    assert np.array_equal(state["backbone"]["w"], objects()["backbone"]["w"])
    captured = capsys.readouterr()
    assert "snapshot 2 was damaged, and is whole again" in captured.out + captured.err
    assert Repository(tmp_path / "r").verify().ok  # the older ones too


def test_what_nobody_holds_falls_back(tmp_path: Path) -> None:
    trained(tmp_path / "r")
    flip(tmp_path / "r", "head/w")
    state = objects()
    with CheckpointManager(Checkpoint(**state), tmp_path / "r") as manager:
        assert manager.resume() == 2
    assert (state["head"]["w"] == 2).all()
