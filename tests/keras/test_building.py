from __future__ import annotations

import keras
import pytest
from tests.keras.trees import X, Y, load, same, save, sequential, train

from safepoint.adapters import keras as adapter
from safepoint.adapters.protocol import Scope
from safepoint.errors import MismatchError, UnsupportedError


class Plain(keras.Model):
    """No build() and no get_config() of its own: Keras finds both out."""

    units = 3

    def __init__(self) -> None:
        super().__init__()
        self.first = keras.layers.Dense(self.units)
        self.second = keras.layers.Dense(2)

    def call(self, x):
        return self.second(self.first(x))


class Configured(Plain):
    def __init__(self, units: int = 3, **_) -> None:
        self.units = units
        super().__init__()

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithArguments(Plain):
    """Keras tells nothing of the arguments that such a model was made with."""

    def __init__(self, units: int = 3) -> None:
        self.units = units
        super().__init__()


class TakesAnObject(keras.Model):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


class Strange:
    def __call__(self, x):
        return x


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dropout(0.2), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    return model


def compiled(model):
    model.compile("adam", "mse")
    return model


MODELS = {"sequential": unbuilt, "subclassed": lambda: compiled(Plain())}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_unbuilt_model_is_built_and_goes_on_bit_for_bit(make):
    model = make()
    model.fit(X, Y, epochs=2, batch_size=4, verbose=0)
    tree, again = save(model), make()
    template = adapter.template(again, tree, Scope())
    assert not again.built
    assert not again.weights
    assert not again.optimizer.built
    assert set(template.leaves) == set(tree.leaves)
    load(tree, again)
    assert same(save(again), tree)
    assert train(model) == train(again)
    assert same(save(model), save(again))


def test_an_unbuilt_model_of_another_architecture_is_refused_and_left_alone():
    model = compiled(Configured(3))
    model.train_on_batch(X, Y)
    other = compiled(Configured(5))
    with pytest.raises(MismatchError) as caught:
        load(save(model), other)
    assert "first/vars/0" in caught.value.differs
    assert not other.built
    assert not other.weights


def test_a_model_that_cannot_be_built_beforehand_says_what_to_do():
    model = WithArguments(5)
    model(X)
    with pytest.raises(UnsupportedError, match="call it once"):
        load(save(model), WithArguments(5))


def test_a_model_with_parts_that_are_no_values_is_called_once():
    model = TakesAnObject(Strange())
    model.inner = keras.layers.Dense(2)
    model(X)
    tree = save(model)
    other = TakesAnObject(Strange())
    other.inner = keras.layers.Dense(2)
    with pytest.raises(UnsupportedError, match="call it once"):
        load(tree, other)
    other(X)
    load(tree, other)
    assert same(save(other), tree)


def test_an_unbuilt_model_cannot_be_saved():
    with pytest.raises(UnsupportedError, match="not built"):
        save(unbuilt())


def test_weights_alone_go_into_an_uncompiled_unbuilt_model():
    model = unbuilt()
    model.fit(X, Y, verbose=0)
    other = keras.Sequential([keras.layers.Dense(8), keras.layers.Dropout(0.2), keras.layers.Dense(2)])
    load(save(model), other)
    assert (other.predict(X, verbose=0) == model.predict(X, verbose=0)).all()


def test_another_kind_of_object_is_refused():
    from safepoint.adapters import plain

    with pytest.raises(MismatchError, match="cannot take"):
        load(plain.to_tree({"a": X}, Scope()), sequential())


def test_a_stranger_who_has_names_only_may_pass():
    from safepoint.tree import StateTree

    model = sequential(None)
    tree = save(model)
    other = sequential(None)
    load(StateTree(dict(tree.leaves)), other)
    assert same(save(other), tree)
