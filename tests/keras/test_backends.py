"""JAX and torch as Keras' backends, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from tests.keras.trees import X, Y, sequential

import safepoint

ROOT = Path(__file__).parents[2]
SOURCE = Path(safepoint.__file__).parents[1]


def run(backend: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_checkpoint_of_tensorflow_is_restored_and_goes_on_with(backend, tmp_path: Path):
    model = sequential()
    model.fit(X, Y, epochs=2, verbose=0)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    result = run(backend, "tests/keras/other_backend.py", str(tmp_path / "run"), str(tmp_path / "out.npz"))
    assert result.returncode == 0, result.stderr[-4000:]
    held = np.load(tmp_path / "out.npz")
    assert str(held["backend"]) == backend
    for index, variable in enumerate(model.weights):
        assert (held[f"weight/{index}"] == keras.ops.convert_to_numpy(variable)).all()
    for index, variable in enumerate(model.optimizer.variables):
        assert (held[f"optimizer/{index}"] == keras.ops.convert_to_numpy(variable)).all()
    seed = np.asarray(keras.ops.convert_to_numpy(model.layers[2].seed_generator.state))
    assert (held["seed"].astype(np.uint32) == seed.astype(np.uint32)).all()
