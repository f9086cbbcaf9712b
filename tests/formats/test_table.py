"""Every row of the README's table of formats: a real file of that kind is shown and opened, its tensors compared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import keras
import numpy as np
import onnx
import orbax.checkpoint
import pytest
import tensorflow as tf
import torch
import torch.distributed.checkpoint as dcp
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import safepoint
from safepoint.cli.program import run as run_program

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
README = Path(__file__).parents[2] / "README.md"
WEIGHT = np.arange(32, dtype=np.float32).reshape(1, 32) / 7


def of_keras(path: Path) -> Path:
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(32)])
    model.set_weights([WEIGHT, np.zeros(32)])
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


def of_repository(path: Path) -> Path:
    safepoint.Checkpoint(model={"w": WEIGHT.copy()}).save(path, metrics={"loss": 1.0})
    return Path(f"{path}@best")


def of_model(path: Path) -> Path:
    module = torch.nn.Linear(32, 1, bias=False)
    module.weight.data[:] = torch.from_numpy(WEIGHT)
    safepoint.save_model(module, path)
    return path


def of_shards(path: Path) -> Path:
    path.mkdir()
    save_file({"w": WEIGHT}, path / "a.safetensors")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    return path


def of_tensorflow(path: Path) -> Path:
    module = tf.Module()
    module.w = tf.Variable(WEIGHT)
    if path.name == "saved":
        tf.saved_model.save(module, path)
        return path
    return Path(tf.train.Checkpoint(module=module).save(path))


def of_onnx(path: Path) -> Path:
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph), path)
    return path


def of_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", WEIGHT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_torch(path: Path) -> Path:
    torch.save({"w": torch.from_numpy(WEIGHT)}, path)
    return path


def of_ranks(path: Path) -> Path:
    dcp.save({"w": torch.from_numpy(WEIGHT)}, checkpoint_id=path, no_dist=True)
    return path


def of_numpy(path: Path) -> Path:
    np.savez(path, w=WEIGHT)
    return path


def of_orbax(path: Path) -> Path:
    orbax.checkpoint.PyTreeCheckpointer().save(path, {"w": WEIGHT})
    return path


ROWS: dict[str, Callable[[Path], Path]] = {
    "safepoint repository, `PATH@best`": lambda folder: of_repository(folder / "run"),
    "safepoint model file": lambda folder: of_model(folder / "model"),
    "`.safetensors`, sharded with an index": lambda folder: of_shards(folder / "shards"),
    "`.npz`, `.npy`": lambda folder: of_numpy(folder / "w.npz"),
    "PyTorch `.pt`, `.pth`, `.bin`": lambda folder: of_torch(folder / "w.pt"),
    "PyTorch distributed checkpoint": lambda folder: of_ranks(folder / "ranks"),
    "`.keras`": lambda folder: of_keras(folder / "m.keras"),
    "`.weights.h5`, legacy `.h5`": lambda folder: of_keras(folder / "m.weights.h5"),
    "TensorFlow checkpoint": lambda folder: of_tensorflow(folder / "ck"),
    "SavedModel": lambda folder: of_tensorflow(folder / "saved"),
    "Orbax checkpoint": lambda folder: of_orbax(folder / "orbax"),
    "ONNX": lambda folder: of_onnx(folder / "m.onnx"),
    "GGUF": lambda folder: of_gguf(folder / "m.gguf"),
}


def test_the_table_has_these_rows() -> None:
    table = re.search(r"\| File \| Read \| Checked \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", README.read_text())
    assert table is not None
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[1].splitlines()] == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROWS[row](tmp_path)
    with safepoint.open(path) as tensors:
        found = [name for name, tensor in tensors.items() if tensor.numpy().tobytes() == WEIGHT.tobytes()]
        assert len(found) == 1
        assert np.array_equal(tensors[found[0]][:, 3:5].reshape(-1), WEIGHT[0, 3:5])
    for arguments in ([], ["--stats"], ["--json"], ["--csv", "--sort", "bytes"]):
        capsys.readouterr()
        assert run_program(["show", str(path), *arguments]) == 0
        assert found[0].rpartition("/")[2].rpartition(".")[2] in capsys.readouterr().out
    target = tmp_path / "converted.safetensors"
    assert run_program(["convert", str(path), str(target), "-q"]) == 0
    with safepoint.open(target) as tensors:
        assert any(tensor.numpy().tobytes() == WEIGHT.tobytes() for tensor in tensors.values())


SILENT = """
import sys
from safepoint.cli.program import run
assert run(["show", sys.argv[1], "-q"]) == 0
late = {"torch", "tensorflow", "keras", "jax", "onnx", "gguf", "safetensors"} & set(sys.modules)
assert not late, late
"""


def test_show_imports_no_framework(tmp_path: Path) -> None:
    for row in ("PyTorch `.pt`, `.pth`, `.bin`", "`.keras`", "ONNX"):
        folder = tmp_path / str(len(row))
        folder.mkdir()
        subprocess.run([sys.executable, "-c", SILENT, str(ROWS[row](folder))], check=True)
