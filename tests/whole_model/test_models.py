from __future__ import annotations

import json
import logging
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tests.whole_model.models import X, Y, assert_same, compiled, state_of

import safepoint
from safepoint.adapters.keras.whole_model.structure import describe

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Registered(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, activation="tanh")
        self.blocks = [layers.Dense(5), layers.BatchNormalization()]
        self.head = layers.Dense(3, activation="softmax")

    def call(self, x, training=None):
        x = self.hidden(x)
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, layers.BatchNormalization) else block(x)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class CompilesItself(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(x)

    def compile(self, **kwargs):
        super().compile(**kwargs)


def _there_and_back(model, tmp_path):
    safepoint.save_model(model, tmp_path / "model")
    return safepoint.load_model(tmp_path / "model")


def _functional():
    inputs = keras.Input((10,))
    x = layers.Dense(200, activation="gelu")(inputs)
    x = keras.ops.sin(x) + 1
    x = layers.Dropout(0.3)(layers.BatchNormalization()(x))
    shared = keras.Sequential([keras.Input((200,)), layers.Dense(4)])
    x = layers.Concatenate()([shared(x), shared(x * 2)])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def _convolutional():
    inputs = keras.Input((10,))
    x = layers.Reshape((5, 2, 1))(inputs)
    x = layers.SeparableConv2D(4, 2, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 2)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def _recurrent():
    inputs = keras.Input((10,))
    x = layers.Reshape((5, 2))(inputs)
    x = layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True))(x)
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalMaxPooling1D()(x)))


BUILDERS = {
    "functional": _functional,
    "convolutional": _convolutional,
    "recurrent": _recurrent,
    "subclassed": Registered,
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_model_predicts_and_trains_on_as_if_nothing_was(kind, tmp_path):
    model = BUILDERS[kind]()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.9)
    model.compile(
        keras.optimizers.AdamW(schedule, use_ema=True), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(X, Y, verbose=0)
    loaded = _there_and_back(model, tmp_path)
    assert type(loaded) is type(model)
    assert describe(loaded) == describe(model)
    assert_same(model, loaded)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "float64"])
def test_every_precision_comes_back_bit_for_bit(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(layers.Dense(300))
        loaded = _there_and_back(model, tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_same(model, loaded)


def test_preprocessing_layers_keep_what_they_learned(tmp_path):
    scale = layers.Normalization()
    scale.adapt(X)
    assert_same(model := compiled(scale, layers.Dense(4)), _there_and_back(model, tmp_path))


def test_vocabularies_are_part_of_the_file(tmp_path):
    words = tf.constant([["a b"], ["zz c"]])
    text = layers.TextVectorization(output_sequence_length=4)
    text.adapt(["a b c", "b c", "größer"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), text, layers.Embedding(9, 3)])
    loaded = _there_and_back(model, tmp_path)
    assert loaded.layers[0].get_vocabulary() == text.get_vocabulary()
    assert loaded(words).numpy().tobytes() == model(words).numpy().tobytes()


def test_a_vocabulary_given_as_a_path_becomes_part_of_the_file(tmp_path):
    (tmp_path / "words.txt").write_text("x\ny\n")
    lookup = layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    safepoint.save_model(model, tmp_path / "model")
    (tmp_path / "words.txt").unlink()
    loaded = safepoint.load_model(tmp_path / "model")
    assert loaded.layers[0].get_vocabulary() == lookup.get_vocabulary()


def test_a_path_that_ends_in_a_slash_becomes_a_folder(tmp_path):
    model = compiled()
    safepoint.save_model(model, f"{tmp_path}/folder/")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["config"]["class_name"] == "Sequential"
    assert_same(safepoint.load_model(tmp_path / "folder"), model)


def test_a_model_with_a_compile_of_its_own_says_what_it_left_out(tmp_path, caplog):
    model = CompilesItself()
    model.compile(optimizer="adam", loss="mse")
    model.fit(X, X[:, :3], verbose=0)
    with caplog.at_level(logging.WARNING, "safepoint"):
        loaded = _there_and_back(model, tmp_path)
    assert "compiles itself" in caplog.text
    assert not loaded.compiled
    assert loaded.predict(X, verbose=0).tobytes() == model.predict(X, verbose=0).tobytes()


def test_loading_draws_no_random_numbers_and_changes_no_other_model(tmp_path):
    model = compiled(layers.Dense(2000))
    safepoint.save_model(model, tmp_path / "model")
    state = random.getstate()
    one, two = safepoint.load_model(tmp_path / "model"), safepoint.load_model(tmp_path / "model")
    assert random.getstate() == state
    before = state_of(two)
    one.fit(X, Y, verbose=0, epochs=2)
    assert state_of(two) == before != state_of(one)
    assert state_of(safepoint.load_model(tmp_path / "model")) == before


def test_the_same_model_is_the_same_file_in_every_process(tmp_path):
    model = _functional()
    assert describe(model) == describe(model)
    safepoint.save_model(model, tmp_path / "a")
    safepoint.save_model(model, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: keras.Sequential([layers.Dense(3)]), "not built"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x)]), "Lambda"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, activation=lambda x: x)]), "lambda"),
        (lambda: np.zeros(3), "ndarray"),
    ],
)
def test_what_cannot_be_kept_is_refused_when_it_is_saved(make, words, tmp_path):
    with pytest.raises(safepoint.UnsupportedError, match=words):
        safepoint.save_model(make(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", [{"device": "cpu"}, {"dtype": "float16"}, {"mmap": True}, {"form": "graph"}])
def test_what_is_not_built_yet_says_so(argument, tmp_path):
    safepoint.save_model(compiled(), tmp_path / "model")
    with pytest.raises(safepoint.UnsupportedError, match=next(iter(argument))):
        safepoint.load_model(tmp_path / "model", **argument)
