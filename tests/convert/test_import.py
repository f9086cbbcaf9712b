"""`safepoint import` without frameworks: what is found, of which step, in which order, and what is left out."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.conftest import Result, safepoint
from tests.open.conftest import safetensors_bytes

import safepoint as library
from safepoint.repository import Repository
from safepoint.tree import StateTree, Tensor

__all__ = ["safepoint"]

Call = Callable[..., Result]
FROZEN = np.arange(5000.0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, value: float, *, metadata: dict[str, str] | None = None, time: int = 0, **more: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(safetensors_bytes({"frozen": FROZEN, "w": np.full(3, float(value)), **more}, metadata))
    if time:
        os.utime(path, (time, time))


def trainer(folder: str, step: int, history: list[dict[str, Any]]) -> None:
    write(f"{folder}/model.safetensors", step, time=1_700_000_000 + step)
    Path(folder, "optimizer.pt").write_bytes(b"not looked at")
    Path(folder, "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))


@pytest.fixture
def outputs() -> None:
    """Checkpoints of a Trainer, whose names do not sort as their steps do."""
    history: list[dict[str, Any]] = []
    for step in (500, 1000, 1500):
        history.append({"loss": 1 / step, "learning_rate": 1e-3, "epoch": step / 500, "step": step})
        history.append({"eval_loss": 2 / step, "eval_runtime": 3.5, "step": step})
        trainer(f"outputs/checkpoint-{step}", step, history)


def snapshots(run: str = "run") -> list[Any]:
    return Repository(run).snapshots


def test_a_trainers_folder_becomes_a_history(outputs: None, safepoint: Call) -> None:
    result = safepoint("import", "outputs", "--into", "run")
    assert (result.code, result.err) == (0, "")
    assert "3 checkpoints imported" in result.out
    found = snapshots()
    assert [s.step for s in found] == [500, 1000, 1500]
    assert [s.parent for s in found] == [None, 0, 1]
    assert found[1].metrics == {"loss": 1e-3, "learning_rate": 1e-3, "epoch": 2.0, "eval_loss": 2e-3}
    assert found[1].time == datetime.fromtimestamp(1_700_001_000, UTC)
    assert found[1].environment["imported from"] == "checkpoint-1000"
    with library.open("run@1000") as tensors:
        assert tensors["model/w"][:].tolist() == [1000] * 3
        assert tensors["model/frozen"][:].tolist() == FROZEN.tolist()
    with library.open("run@best:eval_loss") as tensors:
        assert tensors.metadata["step"] == 1500
    target = {"frozen": np.zeros(5000), "w": np.zeros(3)}
    library.Checkpoint(model=target).restore("run", at=500)
    assert target["w"].tolist() == [500] * 3


def test_what_did_not_change_is_stored_once(outputs: None, safepoint: Call) -> None:
    safepoint("import", "outputs", "--into", "run")
    assert snapshots()[0].written_bytes > FROZEN.nbytes
    assert all(s.written_bytes < 10_000 for s in snapshots()[1:])


def test_a_second_run_imports_only_what_is_new(outputs: None, safepoint: Call) -> None:
    assert len(safepoint("import", "outputs", "--into", "run", "--json").json["imported"]) == 3
    result = safepoint("import", "outputs", "--into", "run")
    assert "0 checkpoints imported  ·  3 there already" in result.out
    trainer("outputs/checkpoint-2000", 2000, [])
    trainer("outputs/checkpoint-700", 700, [])
    document = safepoint("import", "outputs", "--into", "run", "--json").json
    assert [item["step"] for item in document["imported"]] == [2000]
    assert len(document["there"]) == 3
    why = "of step 700, and run has step 1500 already"
    assert document["skipped"] == [{"path": "outputs/checkpoint-700", "why": why, "code": None}]
    assert [(s.step, s.parent) for s in snapshots()][-1] == (2000, 2)


def test_a_dry_run_says_it_all_and_does_nothing(outputs: None, safepoint: Call) -> None:
    result = safepoint("import", "outputs", "--into", "run", "--dry-run")
    assert "3 checkpoints would be imported" in result.out
    rows = [" ".join(line.split()) for line in result.out.splitlines()]
    assert any(row.startswith("1000 checkpoint-1000 ") and "eval_loss 0.002" in row for row in rows)
    assert max(map(len, result.out.splitlines())) <= 80
    document = safepoint("import", "outputs", "--into", "run", "--dry-run", "--json").json
    assert [item["step"] for item in document["planned"]] == [500, 1000, 1500]
    assert {item["step_from"] for item in document["planned"]} == {"trainer_state.json"}
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "name, step, metrics",
    [
        ("epoch_3.safetensors", 3, {}),
        ("epoch=3-step=1200.ckpt", 1200, {"epoch": 3.0}),
        ("net-epoch=03-val_loss=0.25.ckpt", 3, {"val_loss": 0.25, "epoch": 3.0}),
        ("model_step_300.pt", 300, {}),
        ("weights.03-0.25.h5", 3, {}),
        ("bert2_500.bin", 500, {}),
        ("checkpoint-0.npz", 0, {}),
        ("iter_0000100.pth", 100, {}),
        ("resnet18-v1.5.pt", 18, {}),
    ],
)
def test_steps_and_metrics_in_names(safepoint: Call, name: str, step: int, metrics: dict[str, float]) -> None:
    write(name, 1)
    (item,) = safepoint("import", name, "--into", "run", "--json").json["imported"]
    assert (item["step"], item["step_from"], item["metrics"]) == (step, "its name", metrics)


def test_a_step_in_the_file_comes_before_one_in_the_name(safepoint: Call) -> None:
    write("a/epoch_1.safetensors", 1, metadata={"global_step": "900", "format": "pt"})
    write("a/epoch_2.safetensors", 2, global_step=np.array(800))
    write("a/99.safetensors", 3, metadata={"epoch": "700"})
    found = safepoint("import", "a", "--into", "run", "--json").json["imported"]
    assert [(item["step"], item["step_from"]) for item in found] == [
        (700, "the file's epoch"), (800, "the file"), (900, "the file")
    ]  # fmt: skip


def test_what_cannot_be_read_is_named_and_nothing_else_is_lost(outputs: None, safepoint: Call) -> None:
    Path("outputs/checkpoint-1000/model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{broken")
    Path("outputs/epoch_7.pt").write_text("not a checkpoint")
    write("outputs/final.safetensors", 3)
    write("outputs/copy-500.safetensors", 4)
    Path("outputs/notes.txt").write_text("no checkpoint at all")
    result = safepoint("import", "outputs", "--into", "run")
    assert result.code == 5
    assert [s.step for s in snapshots()] == [500, 1500]
    lines = " ".join(result.err.split())
    assert "cannot be read: outputs/checkpoint-1000" in lines
    assert "cannot be read: outputs/epoch_7.pt" in lines
    assert "left out: outputs/final.safetensors: nothing in it, nor in its name, says" in lines
    assert "of step 500, as outputs/checkpoint-500 is" in lines
    assert "notes" not in lines
    Path("outputs/checkpoint-1500/trainer_state.json").write_text("{")
    skipped = safepoint("import", "outputs", "--into", "other", "--json")
    assert skipped.code == 5
    assert [item["step"] for item in skipped.json["imported"]] == [500]


def test_damage_that_shows_only_when_it_is_read(safepoint: Call) -> None:
    for step in (1, 2, 3):
        np.savez(f"model-{step}.npz", w=np.full(100, float(step)))
    data = bytearray(Path("model-2.npz").read_bytes())
    data[data.index(np.full(100, 2.0).tobytes()) + 5] ^= 1
    Path("model-2.npz").write_bytes(data)
    result = safepoint("import", *sorted(Path().glob("*.npz")), "--into", "run", "--json")
    assert result.code == 5
    assert [item["step"] for item in result.json["imported"]] == [1, 3]
    assert [(item["path"], item["code"]) for item in result.json["skipped"]] == [("model-2.npz", "corruption")]
    assert [(s.step, s.parent) for s in snapshots()] == [(1, None), (3, 0)]


def test_a_run_of_its_own_is_not_mixed_with(outputs: None, safepoint: Call) -> None:
    Repository("run").commit(StateTree.join({"model": StateTree({"w": Tensor.of(np.ones(2))})}))
    result = safepoint("import", "outputs", "--into", "run")
    assert result.code == 6
    assert "importing would mix two" in result.err
    assert safepoint("import", "outputs", "--into", "outputs").code == 6
    assert safepoint("import", "nowhere", "--into", "new").code == 10
    Path("empty").mkdir()
    assert safepoint("import", "empty", "--into", "new").code == 10
    assert safepoint("import", "outputs").code == 2
    assert not Path("new").exists()


def test_a_part_of_each(outputs: None, safepoint: Call) -> None:
    result = safepoint("import", "outputs", "--into", "run", "--select", "*.w", "--select", "model/w", "-q")
    assert result.code == 4  # the first pattern is in none of them
    result = safepoint("import", "outputs", "--into", "run", "--select", "model/w", "-q")
    assert result.out.splitlines() == ["run@id:0", "run@id:1", "run@id:2"]
    with library.open("run") as tensors:
        assert list(tensors) == ["model/w"]


def test_shards_are_one_checkpoint_and_ten_names_sort_by_number(safepoint: Call) -> None:
    for step in (9, 10, 100):
        folder = Path(f"outputs/checkpoint-{step}")
        folder.mkdir(parents=True)
        for index in (1, 2):
            data = safetensors_bytes({f"w{index}": np.full(3, step)})
            (folder / f"model-0000{index}-of-00002.safetensors").write_bytes(data)
        weight_map = {f"w{index}": f"model-0000{index}-of-00002.safetensors" for index in (1, 2)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert safepoint("import", "outputs", "--into", "run").code == 0
    assert [(s.step, s.num_tensors) for s in snapshots()] == [(9, 2), (10, 2), (100, 2)]
    assert safepoint("import", "outputs/checkpoint-9", "--into", "other").code == 0
    assert [s.environment["imported from"] for s in snapshots("other")] == ["checkpoint-9"]


def test_a_full_disk_keeps_what_was_imported_before(
    outputs: None, safepoint: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert safepoint("import", "outputs/checkpoint-500", "--into", "run").code == 0

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        assert safepoint("import", "outputs", "--into", "run").code == 12
    assert [s.step for s in snapshots()] == [500]
    assert Repository("run").verify().ok
    assert safepoint("import", "outputs", "--into", "run").code == 0
    assert [s.step for s in snapshots()] == [500, 1000, 1500]


def test_what_lies_beside_a_model_may_say_anything(safepoint: Call) -> None:
    hostile = {"big": 10**400, "flag": True, "text": "x", "nested": {"a": 1}, "nan": float("nan"), "ok": 1, "step": 3}
    trainer("a/checkpoint-1", 1, [hostile, 7, None])  # type: ignore[list-item]
    trainer("a/checkpoint-2", 2, "no list")  # type: ignore[arg-type]
    for number, text in ((3, '{"global_step": true}'), (4, '{"global_step": 1e400}'), (5, "[]"), (6, "[" * 100_000)):
        trainer(f"a/checkpoint-{number}", number, [])
        Path(f"a/checkpoint-{number}/trainer_state.json").write_text(text)
    document = safepoint("import", "a", "--into", "run", "--json")
    assert document.code == 5
    assert [item["step"] for item in document.json["imported"]] == [1, 2, 3, 4, 5]
    assert document.json["imported"][0]["metrics"] == {"nan": {"float": "nan"}, "ok": 1.0}
    assert [item["path"] for item in document.json["skipped"]] == ["a/checkpoint-6"]
    assert safepoint("import", "x" * 5000, "--into", "run").code == 10


@pytest.mark.parametrize("said", ["1e300", "99999999999999", "1.2.3", "nan", "200000000000"])
def test_a_time_that_no_clock_shows(safepoint: Call, said: str) -> None:
    write("source.safetensors", 1)
    safepoint("convert", "source.safetensors", "old/model.ckpt-17.index")
    lines = f'all_model_checkpoint_paths: "model.ckpt-17"\nall_model_checkpoint_timestamps: {said}\n'
    Path("old/checkpoint").write_text(lines)
    assert safepoint("import", "old", "--into", "run").code == 0
    assert abs(snapshots()[0].time.timestamp() - Path("old/model.ckpt-17.index").stat().st_mtime) < 5
