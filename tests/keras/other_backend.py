"""On the backend of this process: restore what TensorFlow saved, go on from snapshots of its own, write what it holds.

More of the tests here run on another backend by hand: `KERAS_BACKEND=jax pytest tests/keras/test_optimizers.py`.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from tests.keras.trees import load, same, save, sequential, train

import safepoint


def goes_on_bit_for_bit(make):
    model, again = make(), make()
    train(model)
    tree = save(model)
    load(tree, again)
    assert list(save(make_built(make)).leaves) == list(tree.leaves)
    assert train(model) == train(again)
    assert same(save(model), save(again))


def make_built(make):
    model = make()
    train(model)
    return model


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


if __name__ == "__main__":
    repository, out = sys.argv[1:]
    model = sequential()
    report = safepoint.Checkpoint(model=model).restore(repository)
    assert not report.missing, report
    held = {f"weight/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.weights)}
    held |= {f"optimizer/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.optimizer.variables)}
    held["seed"] = np.asarray(keras.ops.convert_to_numpy(model.layers[2].seed_generator.state))
    train(model)
    goes_on_bit_for_bit(lambda: sequential(keras.optimizers.Adam(amsgrad=True, use_ema=True)))
    goes_on_bit_for_bit(unbuilt)
    np.savez(out, backend=keras.backend.backend(), **held)
