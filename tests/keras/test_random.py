from __future__ import annotations

import random

import keras
import numpy as np

from safepoint.adapters import random_states
from safepoint.tree import Tensor


def frozen():
    return {
        name: state.capture().map_tensors(lambda _, t: Tensor.of_bytes(t.read().copy(), t.spec))
        for name, state in random_states().items()
    }


def draw():
    import tensorflow as tf

    return [
        random.random(), np.random.random(), *np.asarray(keras.random.normal((2,))).tolist(),
        *tf.random.normal((2,)).numpy().tolist(), *tf.random.uniform((2,)).numpy().tolist(),
        *tf.random.get_global_generator().normal((2,)).numpy().tolist(),
    ]  # fmt: skip


def test_global_random_states_go_on_exactly():
    keras.utils.set_random_seed(5)
    draw()
    saved = frozen()
    assert {"python", "numpy", "keras", "tensorflow"} <= saved.keys()
    expected = draw()
    keras.utils.set_random_seed(77)
    draw()
    for name, state in random_states().items():
        state.restore(saved[name])
    assert draw() == expected


def test_a_generator_that_did_not_exist_is_made_as_it_would_have_been():
    from keras.src.backend.common import global_state

    global_state.set_global_attribute("global_seed_generator", None)
    random.seed(9)
    saved = frozen()
    expected = np.asarray(keras.random.normal((2,))).tolist()
    keras.random.normal((2,))
    for name, state in random_states().items():
        state.restore(saved[name])
    assert np.asarray(keras.random.normal((2,))).tolist() == expected
