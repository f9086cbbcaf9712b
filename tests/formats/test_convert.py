"""What `safepoint convert` writes, read by those whose format it is; and their files, read by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors.torch
import tensorflow as tf
import torch
import torch.distributed.checkpoint as dcp

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


def test_ranks_become_one_file(tmp_path: Path) -> None:
    dcp.save({"model": TENSORS}, checkpoint_id=tmp_path / "ranks", no_dist=True)
    found = torch.load(convert(tmp_path / "ranks", tmp_path / "b.pt"), weights_only=True)
    with safepoint.open(tmp_path / "ranks") as tensors, safepoint.open(tmp_path / "b.pt") as again:
        assert again.specs == tensors.specs
    assert len(found) >= 1


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
