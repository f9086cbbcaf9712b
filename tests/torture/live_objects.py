"""One small live object a framework: what it is, how training changes it in place, and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import safepoint

Bytes = dict[str, bytes]


@dataclass
class Live:
    """A tracked object.

    Attributes:
        checkpoint: that tracks it.
        train: changes all of it in place, as the framework does.
        values: what a save is given, for immutable trees.
    """

    checkpoint: safepoint.Checkpoint
    train: Callable[[int], None]
    values: Callable[[], dict[str, Any]] = dict

    def content(self) -> Bytes:
        """The bytes of everything it tracks, copied, by name."""
        tree = self.checkpoint.capture(self.values() or None)
        tensors = {name: tensor.read().tobytes() for name, tensor in tree.tensors.items()}
        return tensors | {n: repr(leaf).encode() for n, leaf in tree.leaves.items() if n not in tensors}


def numpy_object() -> Live:
    state: dict[str, Any] = {"w": np.zeros((64, 300), np.float32), "step": 0, "large": np.zeros(300_000, np.float32)}

    def train(step: int) -> None:
        state["w"] += step
        state["large"] -= step
        state["step"] += 1

    return Live(safepoint.Checkpoint(state=state), train)


def torch_object() -> Live:
    torch = pytest.importorskip("torch")

    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300), torch.nn.Linear(300, 1000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def train(step: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data.add_(step)  # behind autograd's back
        optimizer.zero_grad()
        model(torch.full((4, 300), float(step))).square().mean().backward()
        optimizer.step()

    return Live(safepoint.Checkpoint(model=model, optimizer=optimizer), train)


def tensorflow_object() -> Live:
    tf = pytest.importorskip("tensorflow")

    module = tf.Module()
    module.w = tf.Variable(tf.zeros((300, 1000)))
    module.b = tf.Variable(tf.zeros(50))

    def train(step: int) -> None:
        module.w.assign_add(tf.fill((300, 1000), float(step)))
        module.b.assign_sub(tf.fill((50,), float(step)))

    return Live(safepoint.Checkpoint(module=module), train)


def keras_object() -> Live:
    keras = pytest.importorskip("keras")

    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300), keras.layers.Dense(900)])
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)

    def train(step: int) -> None:
        for variable in [*model.variables, *model.optimizer.variables]:
            if variable.dtype == "float32":
                variable.assign(variable + step)

    return Live(safepoint.Checkpoint(model=model), train)


def jax_object() -> Live:
    jax = pytest.importorskip("jax")

    tree = {"params": jax.numpy.zeros((300, 1000)), "count": jax.numpy.zeros(50, "int32")}
    update = jax.jit(lambda t, s: jax.tree.map(lambda x: x + s, t), donate_argnums=0)

    def train(step: int) -> None:
        nonlocal tree
        tree = update(tree, step)  # donated: their memory is the next step's

    return Live(safepoint.Checkpoint(params=tree), train, lambda: {"params": tree})


MAKERS: dict[str, Callable[[], Live]] = {
    "numpy": numpy_object, "torch": torch_object, "tensorflow": tensorflow_object, "keras": keras_object,
    "jax": jax_object,
}  # fmt: skip
