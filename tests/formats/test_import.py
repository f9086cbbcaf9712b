"""`safepoint import` of what frameworks leave behind: TensorFlow, Lightning, Transformers, Keras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import pytorch_lightning
import tensorflow as tf
import torch
import transformers

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


class Lit(pytorch_lightning.LightningModule):
    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, _: int) -> Any:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.filterwarnings("ignore")  # Lightning advises on the number of workers, and uses what torch gives up
def test_a_run_of_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its own Trainer and ModelCheckpoint leave it; every tensor is what torch reads."""
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
    keep = pytorch_lightning.callbacks.ModelCheckpoint(
        tmp_path / "old", monitor="val_loss", save_top_k=-1, save_last=True
    )
    model = Lit()
    pytorch_lightning.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[keep],
        accelerator="cpu", num_sanity_val_steps=0,
    ).fit(model, data, data)  # fmt: skip
    document = imported(capsys, tmp_path / "old", "--into", tmp_path / "run")
    assert [item["step"] for item in document["imported"]] == [4, 8]
    assert [list(item["metrics"]) for item in document["imported"]] == [["val_loss", "epoch"]] * 2
    assert document["imported"][1]["metrics"]["val_loss"] == pytest.approx(float(keep.current_score))
    assert [item["path"].rpartition("/")[2] for item in document["skipped"]] == ["last.ckpt"]
    expected = torch.load(tmp_path / "old" / "epoch=1-step=8.ckpt", weights_only=True)
    with safepoint.open(tmp_path / "old" / "epoch=1-step=8.ckpt") as tensors:
        assert (tensors.framework, tensors.plain["global_step"]) == ("PyTorch", 8)
        for name, tensor in expected["state_dict"].items():
            assert np.array_equal(tensors[f"state_dict/{name}"].numpy(), tensor.numpy())
        moments = expected["optimizer_states"][0]["state"][0]
        assert np.array_equal(tensors["optimizer_states/0/state/0/exp_avg"].numpy(), moments["exp_avg"].numpy())
    again = Lit()
    safepoint.Checkpoint(model=again).restore(tmp_path / "run")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected["state_dict"][name])
    assert Repository(tmp_path / "run").resolve("best").metrics["val_loss"] == min(
        item["metrics"]["val_loss"] for item in document["imported"]
    )


@pytest.mark.parametrize("files", ["one file", "shards"])
def test_a_run_of_hugging_faces_trainer(files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": torch.arange(6) + i, "labels": torch.tensor(i % 2)} for i in range(16)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=4, save_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=2,
        per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data).train()
    if files == "shards":
        folder = tmp_path / "out" / "checkpoint-4"
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="2KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    document = imported(capsys, tmp_path / "out", "--into", tmp_path / "run")
    assert [item["step"] for item in document["imported"]] == [2, 4]
    assert all(next(iter(item["metrics"])) == "eval_loss" for item in document["imported"])
    again = transformers.BertForSequenceClassification(config)
    safepoint.Checkpoint(model=again).restore(tmp_path / "run")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert run(["convert", str(tmp_path / "out" / "checkpoint-4"), str(tmp_path / "one" / "model.safetensors")]) == 0
    config.save_pretrained(tmp_path / "one")
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "one")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    with safepoint.open(tmp_path / "out" / "checkpoint-4" / "optimizer.pt") as tensors:
        theirs = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)
        for number, slots in theirs["state"].items():
            assert np.array_equal(tensors[f"state/{number}/exp_avg"].numpy(), slots["exp_avg"].numpy())


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
