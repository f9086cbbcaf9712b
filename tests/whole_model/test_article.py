"""The snippets that people learn saving from: no suffix, no set-up."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tests.whole_model.models import state_of

import safepoint

Dense = tf.keras.layers.Dense


def article_model():
    model = tf.keras.Sequential([Dense(64, activation='relu', input_shape=(100,)), Dense(10, activation='softmax')])  # noqa: Q000  # fmt: skip
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_the_article_works_with_only_the_import_changed(tmp_path, recwarn):
    x_train = np.random.default_rng(0).random((32, 100), dtype=np.float32)
    y_train = np.arange(32) % 10
    x_test = x_train[:8]
    model = article_model()
    model.fit(x_train, y_train, epochs=2, verbose=0)
    before = model(x_test)

    safepoint.save_model(model, str(tmp_path / "model"))
    loaded = safepoint.load_model(str(tmp_path / "model"))
    predictions = loaded(x_test)

    assert predictions.numpy().tobytes() == before.numpy().tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert loaded.compiled
    assert loaded.loss == model.loss
    assert state_of(loaded) == state_of(model)
    histories = [m.fit(x_train, y_train, epochs=2, verbose=0, shuffle=False).history for m in (model, loaded)]
    assert histories[0] == histories[1]
    assert state_of(loaded) == state_of(model)


def test_a_model_that_never_trained_is_saved_with_its_compilation(tmp_path, recwarn):
    model = article_model()
    safepoint.save_model(model, tmp_path / "model")
    loaded = safepoint.load_model(tmp_path / "model")
    assert loaded.compiled
    assert int(loaded.optimizer.iterations) == 0
    x = np.zeros((8, 100), np.float32)
    for one in (model, loaded):
        one.fit(x, np.zeros(8), verbose=0)
    assert state_of(loaded) == state_of(model)


def test_any_safetensors_tool_reads_the_file(tmp_path, recwarn):
    from safetensors.numpy import load_file

    model = article_model()
    safepoint.save_model(model, tmp_path / "model.anything")
    tensors = load_file(tmp_path / "model.anything")
    kernel = tensors["layers/dense/vars/0"]
    assert kernel.tobytes() == model.layers[0].kernel.numpy().tobytes()
    assert {name.partition("/")[0] for name in tensors} == {"layers"} or "__safepoint__" in str(sorted(tensors))


def test_a_name_that_promises_another_format_is_warned_of(tmp_path, caplog):
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), Dense(2)])
    safepoint.save_model(model, tmp_path / "model.keras")
    assert "written in safepoint" in caplog.text
    assert safepoint.load_model(tmp_path / "model.keras").count_params() == 10
