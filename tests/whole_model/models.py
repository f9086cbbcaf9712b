"""Small models, their whole state as bytes, and what it means for two of them to be the same."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

X = np.linspace(-1, 1, 16 * 10, dtype=np.float32).reshape(16, 10)
Y = (np.arange(16) % 3).astype(np.int32)


def compiled(*layers: Any, optimizer: Any = "adam", trained: bool = True) -> Any:
    """A Sequential classifier over `X`, trained for a step."""
    model = keras.Sequential([keras.Input((10,)), *layers, keras.layers.Dense(3, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    if trained:
        model.fit(X, Y, verbose=0)
    return model


def state_of(model: Any, *, seeds: bool = True) -> list[tuple[str, bytes]]:
    """Every variable, the optimizer's too, as bytes."""
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer else [])]
    arrays = [(v, keras.ops.convert_to_numpy(v)) for v in variables if seeds or "seed" not in v.path]
    return [(f"{a.dtype}{a.shape}", a.tobytes()) for _, a in arrays]


def assert_same(one: Any, two: Any, x: Any = X, y: Any = Y) -> None:
    """Equal weights, predictions, optimizer state, and an equal next step."""
    assert state_of(one) == state_of(two)
    assert leaves(one.predict(x, verbose=0)) == leaves(two.predict(x, verbose=0))
    assert one.compiled == two.compiled
    if one.compiled:
        histories = [model.fit(x, y, verbose=0, shuffle=False).history for model in (one, two)]
        assert histories[0] == histories[1]
        assert state_of(one) == state_of(two)


def leaves(tree: Any) -> list[bytes]:
    """The arrays of a nested structure, as bytes."""
    return [np.asarray(x).tobytes() for x in keras.tree.flatten(tree)]
