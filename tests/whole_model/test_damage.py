"""Our own file: damage has a typed error that names what is damaged, and no save can lose the old model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from tests.whole_model.models import assert_same, compiled, state_of

import safepoint
from safepoint.repository.model_file import read_model_file


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return compiled(keras.layers.Dense(40), keras.layers.BatchNormalization())


@pytest.fixture
def path(model, tmp_path):
    safepoint.save_model(model, tmp_path / "model")
    return tmp_path / "model"


def _flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_flipped_bit_anywhere_in_the_header_is_found_before_anything_is_built(path):
    size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    positions = [*range(16), *range(16, size, max(1, size // 300)), size - 1]
    for position in positions:
        for bit in {position % 8, 0, 5}:
            _flip(path, position, bit)
            with pytest.raises((safepoint.CorruptionError, safepoint.UnsupportedError)):
                safepoint.load_model(path)
            _flip(path, position, bit)
    safepoint.load_model(path)


def test_a_flipped_bit_in_a_tensor_names_the_tensor(path):
    file = read_model_file(path)
    for name, stored in file.stored.items():
        for block in stored.blocks:
            position = block.offset + block.length // 2
            _flip(path, position, 3)
            with pytest.raises(safepoint.CorruptionError) as caught:
                safepoint.load_model(path)
            assert caught.value.name == name
            assert name in str(caught.value)
            assert str(path) in str(caught.value)
            _flip(path, position, 3)
    safepoint.load_model(path)


def test_a_truncated_or_extended_file_is_corrupt(path):
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(safepoint.CorruptionError, match=str(path)):
            safepoint.load_model(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(safepoint.CorruptionError):
        safepoint.load_model(path)


_CHILD = """
import os, signal, sys
from safepoint.api import model as api
from safepoint.repository.model_file import read_model_file

source, target, stage = sys.argv[1:]
file = read_model_file(source)
api._take_apart = lambda model, request: (file.structure, file.load(), file.format)
real = getattr(os, stage)

def die(*args, **kwargs):
    if stage == "pwritev":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, stage, die)
api.save_model(None, target)
"""


@pytest.mark.parametrize("stage", ["pwritev", "ftruncate", "fsync", "replace"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_old_model(stage, model, path, tmp_path):
    other = compiled(keras.layers.Dense(41), keras.layers.BatchNormalization())
    safepoint.save_model(other, tmp_path / "other")
    before = path.read_bytes()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "other"), str(path), stage], env={**os.environ}, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert state_of(safepoint.load_model(path)) == state_of(model)
    safepoint.save_model(other, path)
    assert state_of(safepoint.load_model(path)) == state_of(other)


def test_the_new_file_is_durable_before_it_takes_the_old_ones_place(model, path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (calls.append((name, path.stat().st_ino)), real(*a))
        )
    inode = path.stat().st_ino
    safepoint.save_model(model, path)
    assert [name for name, _ in calls] == ["fsync", "replace", "fsync"]
    assert [seen == inode for _, seen in calls] == [True, True, False]


def test_a_failed_write_leaves_the_old_model_and_no_rubbish(model, path, monkeypatch):
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(safepoint.StoreError, match="model"):
        safepoint.save_model(model, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["/proc/self/nowhere/model", "/dev/null/model"])
def test_a_folder_that_cannot_be_written_is_a_store_error_with_its_path(place, model):
    with pytest.raises(safepoint.StoreError, match=place.rpartition("/")[0]):
        safepoint.save_model(model, place)


def test_what_is_no_model_says_what_it_is_and_what_to_do(model, tmp_path):
    kinds = {
        "repository/safepoint.json": (b"{}", safepoint.UnsupportedError, "Checkpoint"),
        "saved/saved_model.pb": (b"", safepoint.UnsupportedError, "SavedModel"),
        "unpacked/model.weights.h5": (b"", safepoint.UnsupportedError, "unpacked"),
        "folder/readme.txt": (b"", safepoint.NotFoundError, "readme.txt"),
        "old.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), safepoint.UnsupportedError, "HDF5"),
        "weights.pt": (b"\x80\x02}q\x00." + bytes(10), safepoint.UnsupportedError, "pickle"),
        "text": (b"hello world, this is text", safepoint.CorruptionError, "text"),
        "empty": (b"", safepoint.CorruptionError, "empty"),
    }
    for name, (content, error, words) in kinds.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        with pytest.raises(error, match=words):
            safepoint.load_model(file if file.parent == tmp_path else file.parent)
    with pytest.raises(safepoint.NotFoundError, match=r"did you mean .*weights\.pt"):
        safepoint.load_model(tmp_path / "weight.pt")
    for taken in ("repository", "repository/", "folder", "old.h5/"):
        with pytest.raises(safepoint.ExistsError):
            safepoint.save_model(model, f"{tmp_path}/{taken}")


def test_tensors_alone_are_no_model(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(safepoint.UnsupportedError, match="no model"):
        safepoint.load_model(tmp_path / "weights.safetensors")


def test_a_model_over_the_one_it_was_loaded_from(model, path):
    loaded = safepoint.load_model(path)
    safepoint.save_model(loaded, path)
    assert_same(safepoint.load_model(path), loaded)
