"""What a checkpoint does with an adapter, without a disk: capture, match, restore."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from safepoint.adapters import keras as adapter
from safepoint.adapters.protocol import Scope
from safepoint.tree import StateTree, Tensor, match

X = np.random.default_rng(0).random((16, 4), dtype="float32")
Y = np.random.default_rng(1).random((16, 2), dtype="float32")


def sequential(optimizer: Any = "adam", *, dropout: bool = True) -> Any:
    layers = [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(0.3)] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    if optimizer is not None:
        # Eagerly where that is quicker than tracing a function for a few steps; the tests of fit() trace.
        model.compile(optimizer, "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    return model


def save(obj: Any, scope: Scope | None = None) -> StateTree:
    """The state of `obj`, as a snapshot would keep it."""
    tree = adapter.to_tree(obj, scope or Scope())
    return tree.map_tensors(lambda _, tensor: Tensor.of_bytes(tensor.read().copy(), tensor.spec))


def load(tree: StateTree, obj: Any, scope: Scope | None = None) -> Any:
    """Restore as the api does: template, strict match, then the leaves."""
    scope = scope or Scope()
    ignored = adapter.ignorable(obj, tree, scope)
    tree = StateTree({n: leaf for n, leaf in tree.leaves.items() if n not in ignored}, tree.skeleton)
    error = match(adapter.template(obj, tree, scope).leaves, tree.leaves).error("the snapshot", cast=False)
    if error is not None:
        raise error
    return adapter.from_tree(tree, obj, scope)


def same(one: StateTree, two: StateTree) -> bool:
    """Whether two trees are bit for bit the same."""
    if list(one.leaves) != list(two.leaves):
        return False
    for name, leaf in one.leaves.items():
        other = two.leaves[name]
        if isinstance(leaf, Tensor) and isinstance(other, Tensor):
            if leaf.spec != other.spec or not np.array_equal(leaf.read(), other.read()):
                return False
        elif leaf != other:
            return False
    return True


def train(model: Any) -> Any:
    """One step from equal global random states: the torch backend's dropout draws from torch's own generator."""
    keras.utils.set_random_seed(1)
    return model.train_on_batch(X, Y)
