"""Keras' `.keras`, `.weights.h5` and legacy `.h5`, compared with what Keras restores; and hostile HDF5 files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from tests.attacks.watching import read_all, refused
from tests.formats.comparing import read_apart

import safepoint

# Keras hands NumPy its variables by the protocol of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    return model


def values_of(tensors: Any) -> list[bytes]:
    return sorted(tensor.numpy().tobytes() for tensor in tensors.values())


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_every_variable_of_every_format(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    model.save(tmp_path / "m.h5")
    weights = [np.asarray(weight) for weight in model.get_weights()]
    optimizer = [np.asarray(variable) for variable in model.optimizer.variables]
    everything = sorted(array.tobytes() for array in [*weights, *optimizer])
    for name, kind in (("m.keras", "keras"), ("m.weights.h5", "hdf5"), ("m.h5", "hdf5")):
        with safepoint.open(tmp_path / name) as tensors:
            assert (tensors.kind, tensors.framework) == (kind, "Keras")
            assert values_of(tensors) == everything
            for tensor in tensors.values():
                if tensor.ndim:
                    assert np.array_equal(tensor[1:], tensor.numpy()[1:])
    with safepoint.open(tmp_path / "m.keras") as tensors:
        assert np.array_equal(tensors["layers/dense/vars/0"], weights[0])
        assert tensors.metadata["keras_version"] == keras.__version__
        assert tensors.metadata["config"]["class_name"] == "Sequential"
    with safepoint.open(tmp_path / "m.h5") as tensors:
        assert tensors.metadata["model_config"]["class_name"] == "Sequential"
    assert len(read_apart(tmp_path / "m.keras")[str(tmp_path / "m.keras")]) == len(everything)


WRITER = """
import sys
import keras, numpy as np
keras.utils.set_random_seed(0)
layers = [keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
model = keras.Sequential(layers)
model.compile("adam", "mse")
model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
for name in ("m.keras", "m.weights.h5", "m.h5"):
    model.save_weights(name) if "weights" in name else model.save(name)
variables = [*model.variables, *model.optimizer.variables]
np.savez("expected.npz", *[keras.ops.convert_to_numpy(variable) for variable in variables])
"""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_files_of_other_backends(backend: str, tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITER], cwd=tmp_path, env=environment, check=True)
    with np.load(tmp_path / "expected.npz") as arrays:
        everything = sorted(array.tobytes() for array in arrays.values())
    for name in ("m.keras", "m.weights.h5", "m.h5"):
        with safepoint.open(tmp_path / name) as tensors:
            assert values_of(tensors) == everything, name


def test_bfloat16_compressed_and_big_endian_datasets(tmp_path: Path) -> None:
    half = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    half.save_weights(tmp_path / "half.weights.h5")
    with safepoint.open(tmp_path / "half.weights.h5") as tensors:
        kernel = tensors["layers/dense/vars/0"]
        assert kernel.spec.dtype in {"bfloat16", "float32"}
        assert kernel.shape == (3, 2)
    array = np.arange(60_000, dtype=">f8").reshape(300, 200)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a/packed", data=array, compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("a/big", data=array)
        file.create_dataset("scalar", data=np.int16(7))
    with safepoint.open(tmp_path / "x.h5") as tensors:
        for name in ("a/packed", "a/big"):
            assert np.array_equal(tensors[name].numpy(), array)
            assert np.array_equal(tensors[name][7, ::3], array[7, ::3])
        assert tensors["scalar"].numpy() == 7
        lazy = tensors["a/packed"]
    with pytest.raises(safepoint.UnsupportedError, match="was closed"):
        lazy.numpy()


def test_damage_in_an_archive_is_found(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "m.keras")
    kernel = np.asarray(model.get_weights()[0]).tobytes()
    data = bytearray((tmp_path / "m.keras").read_bytes())
    data[data.index(kernel) + 5] ^= 1
    (tmp_path / "m.keras").write_bytes(data)
    with safepoint.open(tmp_path / "m.keras") as tensors, pytest.raises(safepoint.CorruptionError, match="damaged"):
        tensors["layers/dense/vars/0"].numpy()


def external(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", (100,), "u1", external=[(str(folder / "secret"), 0, 100)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (10,))
    file.create_virtual_dataset("x", layout)


def cycle(file: h5py.File, _folder: Path) -> None:
    file.create_group("a")["b"] = file["/"]


def soft(file: h5py.File, _folder: Path) -> None:
    file["x"] = h5py.SoftLink("/y")


def elsewhere(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def bomb(file: h5py.File, _folder: Path) -> None:
    file.create_dataset("x", (1 << 40,), "f8", chunks=(1 << 10,))


def reference(file: h5py.File, _folder: Path) -> None:
    file.create_dataset("x", (1,), h5py.ref_dtype)


def text(file: h5py.File, _folder: Path) -> None:
    file.create_dataset("x", data=["a"], dtype=h5py.string_dtype())


@pytest.mark.parametrize("attack", [external, virtual, cycle, soft, elsewhere, bomb, reference, text])
@pytest.mark.parametrize("wrapped", [False, True], ids=["h5", "keras"])
def test_a_hostile_hdf5_file_is_refused(attack: Callable[[Any, Path], None], wrapped, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s" * 100)
    with h5py.File(outside / "other.h5", "w") as file:
        file["x"] = np.ones(10, np.float32)
    inside = tmp_path / "inside"
    inside.mkdir()
    with h5py.File(inside / "x.h5", "w") as file:
        attack(file, outside)
    path = inside / "x.h5"
    if wrapped:
        with zipfile.ZipFile(inside / "x.keras", "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("metadata.json", "{}")
            archive.write(path, "model.weights.h5")
        path = inside / "x.keras"
    refused(path, safepoint.CorruptionError)


def test_a_heap_over_which_the_library_never_ends_is_not_shown_to_it(tmp_path: Path) -> None:
    """A free object of no size, before the one that is looked for."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.ones(3, np.float32)
        file.attrs["backend"] = "a text"
        file.attrs["model_config"] = "{}"
    data = bytearray((tmp_path / "x.h5").read_bytes())
    at = data.index(b"GCOL") + 16
    data[at : at + 16] = bytes(16)
    (tmp_path / "x.h5").write_bytes(data)
    refused(tmp_path / "x.h5", safepoint.CorruptionError, "a text is not where it should be")


def test_texts_are_those_that_h5py_reads(tmp_path: Path) -> None:
    texts = {"backend": "größer " * 500, "keras_version": "", "model_config": json.dumps({"a": [1] * 900})}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.ones(3, np.float32)
        file.attrs.update({f"other{n}": "z" * n for n in range(40)})
        file.attrs.update(texts)
        file.attrs["training_config"] = np.bytes_(b'{"b": 2}')  # of a fixed length
    with safepoint.open(tmp_path / "x.h5") as tensors:
        assert tensors.metadata["backend"] == texts["backend"][:100]
        assert tensors.metadata["keras_version"] == ""
        assert tensors.metadata["model_config"] == {"a": [1] * 900}
        assert tensors.metadata["training_config"] == {"b": 2}


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "m.h5"])
def test_whatever_the_library_says_of_damage_is_our_error(model: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    whole = path.read_bytes()
    rng = random.Random(7)
    refusals = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((1, 8))] = rng.choice((b"\xff" * 8, bytes(8), rng.randbytes(1)))
        path.write_bytes(data)
        try:
            read_all(path)
        except safepoint.SafepointError:
            refusals += 1
    assert refusals > 20


def test_an_hdf5_file_cut_short_or_flipped_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.ones(1000, np.float32)
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "x.h5", safepoint.CorruptionError)
