from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.keras.trees import X, load, same, save

L = keras.layers
WORDS = np.array([["ein", "haus"], ["ein", "Ölbaum\n"], ["haus", "ein"]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


LAYERS = {
    "string": (L.StringLookup, WORDS),
    "string multi_hot": (lambda: L.StringLookup(output_mode="multi_hot"), WORDS),
    "string tf_idf": (lambda: L.StringLookup(output_mode="tf_idf"), WORDS),
    "string tf_idf padded": (lambda: L.StringLookup(output_mode="tf_idf", max_tokens=9, pad_to_max_tokens=True), WORDS),
    "mask": (lambda: L.StringLookup(mask_token="", num_oov_indices=2), WORDS),
    "integer": (L.IntegerLookup, np.array([[3, 7], [7, 12]])),
    "text": (L.TextVectorization, np.array(["ein haus", "ein baum"])),
    "text tf_idf": (lambda: L.TextVectorization(output_mode="tf_idf"), np.array(["ein haus", "ein baum"])),
    "bins": (lambda: L.Discretization(num_bins=4), X),
    "normalization": (L.Normalization, X),
    "hashing": (lambda: L.Hashing(5), WORDS),
}


@pytest.mark.parametrize("make, data", LAYERS.values(), ids=LAYERS)
def test_adapted_state_comes_back(make, data):
    one, two = make(), make()
    if hasattr(one, "adapt"):
        one.adapt(data)
    expected = np.asarray(one(data))
    tree = save(one)
    load(tree, two)
    assert (np.asarray(two(data)) == expected).all()
    assert same(save(two), tree)


def test_inverse_lookup():
    one = L.StringLookup(vocabulary=["a", "b"], invert=True)
    two = L.StringLookup(vocabulary=["x", "y", "z"], invert=True)
    load(save(one), two)
    assert [bytes(x) for x in np.asarray(two(np.array([1, 2])))] == [b"a", b"b"]


def test_a_vocabulary_replaces_another_and_an_empty_one_empties():
    one, two = adapted(L.StringLookup(), WORDS), adapted(L.StringLookup(), np.array(["x", "y", "z", "u", "v"]))
    load(save(one), two)
    assert two.get_vocabulary() == one.get_vocabulary()
    load(save(L.StringLookup()), two)
    assert two.vocabulary_size() == L.StringLookup().vocabulary_size()


def test_compiled_functions_see_the_restored_statistics():
    def make(scale):
        norm = L.Normalization()
        norm.adapt(X * scale)
        return keras.Sequential([keras.Input((4,)), norm, L.Dense(1, kernel_initializer="ones")])

    one, two = make(1), make(100)
    expected = one.predict(X, verbose=0)
    two.predict(X, verbose=0)  # compiled with the old statistics
    load(save(one), two)
    assert (two.predict(X, verbose=0) == expected).all()


def test_text_model_end_to_end():
    def make():
        model = keras.Sequential([keras.Input((), dtype="string"), L.TextVectorization(output_sequence_length=4),
                                  L.Embedding(10, 3), L.GlobalAveragePooling1D(), L.Dense(1)])  # fmt: skip
        model.compile("adam", "mse")
        return model

    import tensorflow as tf

    texts = tf.constant(["ein haus", "ein baum", "kein haus"])
    model = make()
    model.layers[0].adapt(texts)
    model.fit(texts, np.ones((3, 1)), verbose=0)
    other = make()
    load(save(model), other)
    assert (other.predict(texts, verbose=0) == model.predict(texts, verbose=0)).all()
