from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from tests.keras.trees import X, Y, same, save, sequential, train

import safepoint


def trained():
    model = sequential()
    model.fit(X, Y, epochs=2, verbose=0)
    return model


def test_a_compiled_model_goes_on_in_a_fresh_one(tmp_path: Path):
    model = trained()
    checkpoint = safepoint.Checkpoint(model=model)
    for _ in range(3):
        checkpoint.save(tmp_path / "run")
    other = sequential()
    report = safepoint.Checkpoint(model=other).restore(tmp_path / "run")
    assert not report.missing
    assert not report.ignored
    assert train(model) == train(other)
    assert same(save(model), save(other))


def test_weights_alone_are_restored_into_an_uncompiled_model_and_the_optimizer_is_listed(tmp_path: Path):
    model, other = trained(), sequential(None)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    report = safepoint.Checkpoint(model=other).restore(tmp_path / "run")
    assert "model/optimizer/layers/dense/vars/0/momentum" in report.ignored
    assert (model.predict(X, verbose=0) == other.predict(X, verbose=0)).all()


def test_select_and_rename_by_structural_names(tmp_path: Path):
    model, other = trained(), sequential()
    safepoint.Checkpoint(net=model).save(tmp_path / "run")
    before = save(other)
    checkpoint = safepoint.Checkpoint(model=other)
    checkpoint.restore(tmp_path / "run", rename={"^net/": "model/"}, select=["model/layers/dense/vars/*"])
    after = save(other)
    changed = {name for name in before.leaves if (before.leaves[name].read() != after.leaves[name].read()).any()}
    assert changed == {"layers/dense/vars/0", "layers/dense/vars/1"}
    assert not other.optimizer.built


def test_another_architecture_changes_nothing_and_names_every_difference(tmp_path: Path):
    safepoint.Checkpoint(model=trained()).save(tmp_path / "run")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(9), keras.layers.Dense(2)])
    other.compile("adam", "mse")
    before = save(other)
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(model=other).restore(tmp_path / "run")
    assert "model/layers/dense/vars/0" in caught.value.differs
    assert "model/layers/batch_normalization/vars/0" in caught.value.unexpected
    assert same(save(other), before)


@pytest.mark.parametrize("build", [False, True])
def test_an_optimizer_tracked_beside_its_model(tmp_path: Path, build):
    def make():
        model, optimizer = sequential(None), keras.optimizers.Adam(0.01)
        if build:
            optimizer.build(model.trainable_variables)
        return model, optimizer

    def step(model, optimizer):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = keras.ops.mean((model(X) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return float(loss)

    model, optimizer = make()
    step(model, optimizer)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "run")
    names = safepoint.Checkpoint(model=model, optimizer=optimizer).capture().leaves
    assert "optimizer/model/layers/dense/vars/0/momentum" in names
    other, again = make()
    safepoint.Checkpoint(model=other, optimizer=again).restore(tmp_path / "run")
    assert [step(model, optimizer) for _ in range(3)] == [step(other, again) for _ in range(3)]


def test_a_loop_with_a_manager_goes_on_exactly(tmp_path: Path):
    def run(steps, stop=None, directory="run"):
        keras.utils.set_random_seed(5)
        model = sequential()
        manager = safepoint.CheckpointManager(safepoint.Checkpoint(model=model), tmp_path / directory)
        losses = {}
        for step in manager.steps(steps):
            batch = np.random.permutation(len(X))[:8]
            losses[step] = model.train_on_batch(X[batch], Y[batch])
            manager.save(metrics={"loss": losses[step]})
            if step == stop:
                manager.close()
                break
        return losses, save(model)

    first, _ = run(6, stop=2)
    rest, resumed = run(6)
    losses, whole = run(6, directory="other")
    assert {**first, **rest} == losses
    assert same(resumed, whole)


def test_a_model_that_trains_on_between_save_and_commit_is_saved_as_it_was(tmp_path: Path):
    model = trained()
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(model=model), tmp_path / "run")
    expected = save(model)
    manager.save(0)
    model.fit(X, Y, verbose=0)
    manager.close()
    safepoint.Checkpoint(model=model).restore(tmp_path / "run")
    assert same(save(model), expected)


def test_an_unbuilt_model_is_restored_from_the_repository(tmp_path: Path):
    def make():
        model = keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(2)])
        model.compile("adam", "mse")
        return model

    model, other = make(), make()
    model.fit(X, Y, verbose=0)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    safepoint.Checkpoint(model=other).restore(tmp_path / "run")
    assert same(save(other), save(model))


def test_preprocessing_goes_through_a_repository(tmp_path: Path):
    def make():
        return keras.Sequential([keras.Input((4,)), keras.layers.Normalization(), keras.layers.Dense(2)])

    model, other = make(), make()
    model.layers[0].adapt(X)
    words, others = keras.layers.StringLookup(), keras.layers.StringLookup()
    words.adapt(np.array([["ein", "Ölbaum"]]))
    safepoint.Checkpoint(model=model, words=words).save(tmp_path / "run")
    safepoint.Checkpoint(model=other, words=others).restore(tmp_path / "run")
    assert others.get_vocabulary() == words.get_vocabulary()
    assert (model.predict(X, verbose=0) == other.predict(X, verbose=0)).all()


def test_a_selected_part_of_an_optimizer_leaves_the_rest_as_it_begins(tmp_path: Path):
    def make():
        model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(200)])
        model.compile(keras.optimizers.Adagrad(0.1), "mse")
        return model

    model, other = make(), make()
    model.fit(np.ones((4, 200)), np.ones((4, 200)), verbose=0)
    safepoint.Checkpoint(model=model).save(tmp_path / "run")
    select = ["model/optimizer/layers/dense/vars/1/*"]
    safepoint.Checkpoint(model=other).restore(tmp_path / "run", select=select)
    tree = save(other)
    assert (tree.leaves["optimizer/layers/dense/vars/0/accumulator"].numpy() == np.float32(0.1)).all()
    assert (tree.leaves["optimizer/layers/dense/vars/1/accumulator"].numpy() != np.float32(0.1)).any()
    assert int(other.optimizer.iterations) == 0
