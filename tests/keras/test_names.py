from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from tests.keras.trees import X, Y, save, sequential

from safepoint.errors import UnsupportedError


class Block(keras.layers.Layer):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.inner = [keras.layers.Dense(units), [keras.layers.Dense(units), keras.layers.LayerNormalization()]]
        self.table = {"b": keras.layers.Dense(units), "a": keras.layers.Dense(units)}
        self._private = keras.layers.Dense(units)

    def build(self, shape):
        self.scale = self.add_weight(shape=(self.units,), name="scale")
        self.statistics = self.add_weight(shape=(), name="statistics", trainable=False)
        for layer in (*self.inner[1:][0], self.inner[0], *self.table.values(), self._private):
            layer.build((*shape[:-1], self.units))

    def call(self, x):
        x = self.inner[1][1](self.inner[1][0](self.inner[0](x)))
        return self._private(self.table["a"](self.table["b"](x))) * self.scale


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.z = keras.layers.Dense(4)
        self.block = Block(4)
        self.head = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])

    @property
    def property_that_names_it_first(self):
        return self.z

    def call(self, x):
        return self.head(self.block(self.z(x)))


def functional():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4)
    nested = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), shared])
    x = shared(nested(shared(inputs)))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(x)))


def subclassed():
    model = Subclassed()
    model(X)
    return model


MODELS = {"sequential": sequential, "functional": functional, "subclassed": subclassed}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_names_of_variables_are_those_of_keras_weights_files(make, tmp_path: Path):
    model = make()
    names = {n for n in save(model).leaves if not n.startswith("optimizer/") and not n.endswith("seed_generator/state")}
    model.save_weights(tmp_path / "x.weights.h5")
    theirs: set[str] = set()
    with h5py.File(tmp_path / "x.weights.h5") as file:
        file.visititems(lambda name, item: theirs.add(name) if isinstance(item, h5py.Dataset) else None)
    assert names == {name for name in theirs if not name.startswith("optimizer/")}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_names_stay_when_a_model_is_built_again(make):
    assert list(save(make()).leaves) == list(save(make()).leaves)


def test_names_of_a_compiled_model_are_owner_and_slot():
    model = sequential()
    model.train_on_batch(X, Y)
    names = list(save(model).leaves)
    assert names[:2] == ["layers/dense/vars/0", "layers/dense/vars/1"]
    assert "layers/dropout/seed_generator/state" in names
    assert [n for n in names if n.startswith("optimizer/")][:4] == [
        "optimizer/iterations",
        "optimizer/learning_rate",
        "optimizer/layers/dense/vars/0/momentum",
        "optimizer/layers/dense/vars/0/velocity",
    ]


def test_looking_leaves_no_trace():
    import random

    model = sequential()
    random.seed(3)
    expected = random.random()
    random.seed(3)
    save(model)
    assert random.random() == expected
    name = keras.layers.Layer().name
    save(model)
    later = keras.layers.Layer().name
    assert int(later.rpartition("_")[2]) == int(name.rpartition("_")[2] if "_" in name else 0) + 1


def test_layers_without_a_path_are_refused_by_name():
    class Bag:
        def __init__(self, layer):
            self.layer = layer

    class Lost(keras.Model):
        def __init__(self):
            super().__init__()
            self.bag = Bag(keras.layers.Dense(2))
            self._tracker.unlock()
            self._layers.append(self.bag.layer)

        def call(self, x):
            return self.bag.layer(x)

    model = Lost()
    model(X)
    names = list(save(model).leaves)
    assert names == ["layers/dense/vars/0", "layers/dense/vars/1"]  # Keras tracks it, so it has a path

    class InASet(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.heads = {keras.layers.Dense(2)}

        def call(self, x):
            return next(iter(self.heads))(x)

    layer = InASet()
    layer(np.ones((1, 4)))
    with pytest.raises(UnsupportedError, match="cannot be reached by an attribute"):
        save(layer)
