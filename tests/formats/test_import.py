"""`safepoint import` of what frameworks leave behind: TensorFlow, PyTorch as Lightning saves, Transformers, Keras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from transformers import BertConfig, BertModel, TrainerState

import safepoint
from safepoint.cli.program import run
from safepoint.repository import Repository

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
]


def imported(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(["import", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_tensorflows_manager(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = tf.Variable(np.zeros(3, np.float32))
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(w=weight), tmp_path / "old", 5, checkpoint_name="model.ckpt"
    )
    for number in (2, 9, 17):
        weight.assign(np.full(3, number))
        manager.save(checkpoint_number=number)
    document = imported(capsys, tmp_path / "old", "--into", tmp_path / "run")
    assert [item["step"] for item in document["imported"]] == [2, 9, 17]
    state = tf.train.get_checkpoint_state(tmp_path / "old")
    times = [snapshot.time.timestamp() for snapshot in Repository(tmp_path / "run").snapshots]
    assert times == pytest.approx(list(state.all_model_checkpoint_timestamps), abs=1e-3)
    with safepoint.open(f"{tmp_path / 'run'}@9") as tensors:
        assert tensors["model/w/.ATTRIBUTES/VARIABLE_VALUE"][:].tolist() == [9] * 3


def test_checkpoints_as_lightning_saves_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dictionary of `Trainer.dump_checkpoint` of Lightning 2, with a ModelCheckpoint that monitors."""
    module = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for epoch in range(2):
        module(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        score = torch.tensor(0.5 - epoch / 10)
        callback = {"monitor": "val_loss", "best_model_score": score, "current_score": score, "dirpath": "/x"}
        torch.save(
            {
                "epoch": epoch,
                "global_step": 100 * (epoch + 1),
                "pytorch-lightning_version": "2.5.0",
                "state_dict": module.state_dict(),
                "loops": {"fit_loop": {"state_dict": {}}},
                "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": callback},
                "optimizer_states": [optimizer.state_dict()],
                "lr_schedulers": [],
                "hparams_name": "kwargs",
                "hyper_parameters": {"lr": 1e-3},
            },
            tmp_path / f"epoch={epoch}.ckpt",
        )
    document = imported(capsys, tmp_path, "--into", tmp_path / "run")
    assert [(item["step"], item["metrics"]["epoch"]) for item in document["imported"]] == [(100, 0.0), (200, 1.0)]
    assert document["imported"][1]["metrics"]["val_loss"] == pytest.approx(0.4)
    again = torch.nn.Linear(4, 2)
    safepoint.Checkpoint(model=again).restore(tmp_path / "run", at="best:val_loss")
    assert torch.equal(again.weight, module.weight)


def test_a_trainers_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertModel(config)
    for step in (5, 10):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        with torch.no_grad():
            model.pooler.dense.bias += step
        model.save_pretrained(folder)
        torch.save({"state": {}}, folder / "optimizer.pt")
        state = TrainerState(global_step=step, log_history=[{"loss": 1 / step, "step": step}])
        state.save_to_json(folder / "trainer_state.json")
    document = imported(capsys, tmp_path / "out", "--into", tmp_path / "run")
    assert [(item["step"], item["metrics"]) for item in document["imported"]] == [
        (5, {"loss": 0.2}),
        (10, {"loss": 0.1}),
    ]
    again = BertModel(config)
    safepoint.Checkpoint(model=again).restore(tmp_path / "run")
    assert torch.equal(again.pooler.dense.bias, model.pooler.dense.bias)
    assert run(["convert", str(tmp_path / "out" / "checkpoint-5"), str(tmp_path / "one" / "model.safetensors")]) == 0
    config.save_pretrained(tmp_path / "one")
    assert BertModel.from_pretrained(tmp_path / "one").pooler.dense.bias.shape == (8,)


def test_files_of_kerass_callback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    for epoch in (1, 2):
        model.save_weights(tmp_path / f"weights.{epoch:02d}-0.25.weights.h5")
    document = imported(capsys, tmp_path, "--into", tmp_path / "run")
    assert [item["step"] for item in document["imported"]] == [1, 2]


def test_code_in_a_file_is_named_and_the_others_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "step_1.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "step_2.pt")
    document = imported(capsys, tmp_path, "--into", tmp_path / "run", code=8)
    assert [item["step"] for item in document["imported"]] == [1]
    assert [item["code"] for item in document["skipped"]] == ["untrusted"]
    with safepoint.open(tmp_path / "run") as tensors:
        assert np.array_equal(tensors["model/w"].numpy(), np.ones(3))
