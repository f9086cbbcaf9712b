"""One file, three backends: saved on TensorFlow, trained on with JAX, opened again on torch; a `.keras` file too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safepoint.adapters.keras.whole_model.structure import build
from safepoint.repository.model_file import read_model_file

_SCRIPT = """
import json, sys
import keras, numpy as np
import safepoint
from safepoint.repository.model_file import read_model_file

action, source, target, archive = sys.argv[1:]


def same(theirs, ours, but=()):
    theirs, ours = read_model_file(theirs).load().tensors, read_model_file(ours).load().tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        if name.endswith(but):
            continue
        if "seed" in name or name == "optimizer/iterations":  # an integer of another width, the same number
            assert tensor.numpy().astype("int64").tolist() == ours[name].numpy().astype("int64").tolist(), name
        else:
            assert tensor.spec == ours[name].spec and tensor.read().tobytes() == ours[name].read().tobytes(), name


rng = np.random.default_rng(0)
x, y = rng.random((32, 8, 8, 1), np.float32), rng.integers(0, 4, 32)
if action == "make":
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    h = keras.layers.BatchNormalization()(h)
    h = keras.layers.Dropout(0.25)(keras.layers.Flatten()(h))
    h = keras.layers.Dense(100, activation="gelu")(h)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(h))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, verbose=0)
else:
    model = safepoint.load_model(source)
    assert model.compiled
    safepoint.save_model(model, target + ".again")
    same(source, target + ".again")
    theirs = safepoint.load_model(archive)
    assert theirs.compiled
    safepoint.save_model(theirs, target + ".archive")
    same(source, target + ".archive", but=("seed_generator/state",))  # which Keras does not keep in its files
before = model.predict(x, verbose=0)
loss = model.evaluate(x, y, verbose=0)[0]
np.save(target + ".npy", before)
safepoint.save_model(model, target)
if action == "make":
    model.save(archive)
model.fit(x, y, verbose=0)  # and it trains on
print(json.dumps({"backend": keras.backend.backend(), "loss": loss, "iterations": int(model.optimizer.iterations)}))
"""


def _run(backend: str, *arguments: str) -> dict[str, object]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["backend"] == backend
    return dict(result)


def test_a_model_goes_from_backend_to_backend(tmp_path: Path):
    archive = str(tmp_path / "tf.keras")  # Keras' own file
    first = _run("tensorflow", "make", "", str(tmp_path / "tf"), archive)
    results = [first]
    for backend, source in [("jax", "tf"), ("torch", "jax")]:
        results.append(_run(backend, "load", str(tmp_path / source), str(tmp_path / backend), archive))
    expected = np.load(tmp_path / "tf.npy")
    for name in ("jax", "torch"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-4, atol=1e-6)
    assert [r["iterations"] for r in results] == [2] * 3
    assert [r["loss"] for r in results] == pytest.approx([first["loss"]] * 3, rel=1e-4)
    back = build(read_model_file(tmp_path / "torch").structure)  # here, on TensorFlow again
    assert type(back.optimizer).__module__ == "keras.src.optimizers.adam"
