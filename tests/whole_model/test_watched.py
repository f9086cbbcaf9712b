"""Every way to a Keras model or its state, under the audit hook: see `tests/audit.py`."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest
from tests.attacks.watching import loads_safely, read_all
from tests.whole_model.models import compiled

import safepoint

layers = keras.layers


@pytest.mark.parametrize("name", ["model", "model.keras"])
def test_a_whole_model(name: str, tmp_path: Path) -> None:
    model = compiled(layers.Dense(4, activation="relu"), layers.BatchNormalization(), layers.Dense(3))
    path = tmp_path / name
    if name == "model":
        safepoint.save_model(model, path)
    else:
        model.save(path)
    loads_safely(tmp_path, lambda: safepoint.load_model(path))
    loads_safely(tmp_path, lambda: read_all(path))


def test_restore_and_resume(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(model=compiled(layers.Dense(3)))
    checkpoint.save(tmp_path / "run")

    def resume() -> int:
        with safepoint.CheckpointManager(checkpoint, tmp_path / "run", keep=[]) as manager:
            return manager.resume()

    loads_safely(tmp_path, lambda: checkpoint.restore(tmp_path / "run"))
    loads_safely(tmp_path, resume)


def test_weights_alone(tmp_path: Path) -> None:
    model = compiled(layers.Dense(3))
    model.save_weights(tmp_path / "a.weights.h5")
    loads_safely(tmp_path, lambda: read_all(tmp_path / "a.weights.h5"))
