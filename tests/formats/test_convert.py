"""What `safepoint convert` writes, read by those whose format it is; and their files, read by it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors.torch
import tensorflow as tf
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import safepoint
from safepoint.cli.program import run

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]
TENSORS = {
    "encoder.weight": torch.randn(30, 40),
    "half": torch.randn(7).bfloat16(),
    "count": torch.arange(5),
    "nothing": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "small": torch.arange(3).to(torch.uint16),
    "flags": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "turned": torch.randn(4, 5).t(),
    "eight": torch.randn(4).to(torch.float8_e4m3fn),
}
FOR_ALL = [name for name in TENSORS if name not in {"half", "eight"}]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"model": TENSORS, "epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def convert(source: Path | str, target: Path, *options: str) -> Path:
    assert run(["convert", str(source), str(target), "-q", *options]) == 0
    return target


def test_torch_loads_pt_with_weights_only(source: Path, tmp_path: Path) -> None:
    again = convert(source, tmp_path / "b.pt")
    for options in ({}, {"mmap": True}):
        found = torch.load(again, weights_only=True, **options)
        assert (found["epoch"], found["lr"]) == (3, 0.1)
        for name, tensor in TENSORS.items():
            assert (found["model"][name].dtype, found["model"][name].shape) == (tensor.dtype, tensor.shape)
            assert raw(found["model"][name]) == raw(tensor), name
    linear = torch.nn.Linear(3, 2)
    torch.save(linear.state_dict(), source)
    linear.load_state_dict(torch.load(convert(source, tmp_path / "c.pth"), weights_only=True))


def test_safetensors_loads_safetensors(source: Path, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "b.safetensors", "--rename", "^model/=")
    found = safetensors.torch.load_file(path)
    assert {name: raw(tensor) for name, tensor in found.items()} == {n: raw(t) for n, t in TENSORS.items()}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "epoch": "3", "lr": "0.1"}


def test_tensorflow_loads_its_checkpoint(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "b.index")
    reader = tf.train.load_checkpoint(str(tmp_path / "b"))
    shapes = reader.get_variable_to_shape_map()
    assert shapes == {f"model/{name}": list(tensor.shape) for name, tensor in TENSORS.items()}
    for name in [*FOR_ALL, "half"]:
        assert reader.get_tensor(f"model/{name}").tobytes() == raw(TENSORS[name]), name


def test_a_table_of_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the index of 2 kB stand for those of 256."""
    monkeypatch.setattr("safepoint.formats.writing.tensorflow._BLOCK_BYTES", 2000)
    arrays = {f"layer_{index:03d}/{'x' * 80}": np.full(2, index, np.int32) for index in range(200)}
    np.savez(tmp_path / "a.npz", **arrays)
    convert(tmp_path / "a.npz", tmp_path / "b.index")
    reader = tf.train.load_checkpoint(str(tmp_path / "b"))
    assert len(reader.get_variable_to_shape_map()) == 200
    for name, array in arrays.items():
        assert reader.get_tensor(name).tolist() == array.tolist()


def test_h5py_reads_hdf5(source: Path, tmp_path: Path) -> None:
    options = [option for name in [*FOR_ALL, "half"] for option in ("--select", f"model/{name}")]
    with h5py.File(convert(source, tmp_path / "b.h5", *options)) as file:
        for name in FOR_ALL:
            assert file["model"][name][...].tobytes() == raw(TENSORS[name]), name
        assert file["model/half"][...].tobytes() == raw(TENSORS["half"])
        assert file["model/half"].attrs["dtype"] == "bfloat16"
    assert run(["convert", str(source), str(tmp_path / "c.h5")]) == 7  # float8 has no place


def test_keras_loads_the_weights_of_a_snapshot(tmp_path: Path) -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])

    model, other = build(), build()
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    other.load_weights(convert(tmp_path / "run", tmp_path / "b.weights.h5", "--select", "model/layers"))
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_keras_loads_the_weights_and_the_optimizer_of_a_compiled_model(tmp_path: Path) -> None:
    def build() -> keras.Model:
        inputs = keras.Input((8,))
        part = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)])
        model = keras.Model(inputs, keras.layers.Dense(3)(part(inputs)))
        model.compile(keras.optimizers.Adam(amsgrad=True), "mse")
        return model

    x, y = np.random.default_rng(0).random((64, 8)), np.ones((64, 3))
    model = build()
    model.fit(x, y, verbose=0)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    safepoint.save_model(model, tmp_path / "model")
    for source in ("run", "model"):
        other = build()
        other.optimizer.build(other.trainable_variables)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "Skipping variable loading for optimizer"
            other.load_weights(convert(tmp_path / source, tmp_path / f"{source}.weights.h5"))
        assert len(other.optimizer.variables) > 12
        for ours, theirs in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
            assert np.array_equal(ours, theirs), ours.path
        assert np.array_equal(model(x), other(x))


def test_an_optimizer_loads_what_was_converted(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.8, 0.9))
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "list": [1, (2.5, "x"), []], 7: {}, "a/b": {None: True}}
    torch.save(state, tmp_path / "a.pt")
    found = torch.load(convert(tmp_path / "a.pt", tmp_path / "b.pt"), weights_only=True)
    assert {**found, "optimizer": 0} == {**state, "optimizer": 0}
    assert str(found) == str(state)
    other = torch.optim.AdamW(torch.nn.Linear(4, 2).parameters())
    other.load_state_dict(found["optimizer"])
    assert str(other.state_dict()) == str(optimizer.state_dict())


def test_of_a_part_indices_stay_what_they_were(tmp_path: Path) -> None:
    torch.save({"blocks": [torch.zeros(1), torch.ones(2), torch.ones(3)], "rest": {}}, tmp_path / "a.pt")
    options = ("--select", "blocks/0", "--select", "blocks/2")
    found = torch.load(convert(tmp_path / "a.pt", tmp_path / "b.pt", *options), weights_only=True)
    assert {index: tensor.tolist() for index, tensor in found["blocks"].items()} == {0: [0], 2: [1, 1, 1]}
    assert list(found) == ["blocks"]


def test_a_snapshot_of_plain_state_keeps_its_lists(tmp_path: Path) -> None:
    state = {"ema": [torch.ones(2), torch.zeros(3)], "at": (1, {2: "x"})}
    safepoint.Checkpoint(state=state, other={"w": torch.ones(1)}).save(tmp_path / "run")
    found = torch.load(convert(tmp_path / "run", tmp_path / "b.pt"), weights_only=True)
    assert str(found["state"]) == str(state)
    assert str(found["other"]) == str({"w": torch.ones(1)})
    alone = torch.load(convert(tmp_path / "run", tmp_path / "c.pt", "--select", "state"), weights_only=True)
    assert str(alone) == str(state)


def test_what_was_converted_to_a_repository_comes_back(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 2)
    torch.save({"model": net.state_dict(), "ema": {"a.b": torch.ones(1)}, "step": 3}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "run")
    found = torch.load(convert(tmp_path / "run", tmp_path / "b.pt"), weights_only=True)
    assert list(found) == ["model", "ema", "step"]
    assert (list(found["model"]), list(found["ema"]), found["step"]) == (["weight", "bias"], ["a.b"], 3)
    found = torch.load(convert(tmp_path / "run", tmp_path / "c.pt", "--select", "ema", "--select", "step"))
    assert list(found) == ["a.b", "step"]


def test_ranks_become_the_file_that_torch_makes_of_them(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 2)
    state = {"model": TENSORS, "net": net.state_dict(), "parts": [torch.ones(1), {"x": torch.zeros(2)}], "at": [1, 2]}
    dcp.save(state, checkpoint_id=tmp_path / "ranks", no_dist=True)
    found = torch.load(convert(tmp_path / "ranks", tmp_path / "b.pt"), weights_only=True)
    dcp_to_torch_save(tmp_path / "ranks", tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert str(sorted(found.items())) == str(sorted(theirs.items()))
    assert found["parts"][1]["x"].tolist() == [0, 0]
    with safepoint.open(tmp_path / "ranks") as tensors, safepoint.open(tmp_path / "b.pt") as again:
        assert again.specs == tensors.specs


def test_a_cast_is_the_one_of_torch(source: Path, tmp_path: Path) -> None:
    for word, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        found = torch.load(convert(source, tmp_path / f"{word}.pt", "--dtype", word), weights_only=True)["model"]
        assert raw(found["encoder.weight"]) == raw(TENSORS["encoder.weight"].to(dtype))
        assert raw(found["eight"]) == raw(TENSORS["eight"].to(dtype))
        assert raw(found["count"]) == raw(TENSORS["count"])


SILENT = """
import sys
from safepoint.cli.program import run
for target in sys.argv[2:]:
    assert run(["convert", sys.argv[1], target, "-q", "--select", "model/encoder.weight"]) == 0
late = {"torch", "tensorflow", "keras", "jax", "safetensors", "google"} & set(sys.modules)
assert not late, late
"""


def test_no_framework_is_imported(source: Path, tmp_path: Path) -> None:
    targets = [str(tmp_path / name) for name in ("b.pt", "b.safetensors", "b.index", "b.h5", "b.npz", "run")]
    subprocess.run([sys.executable, "-c", SILENT, str(source), *targets], check=True)
