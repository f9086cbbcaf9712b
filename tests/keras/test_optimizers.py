from __future__ import annotations

import keras
import pytest
from tests.keras.trees import X, Y, load, same, save, sequential, train

import safepoint
from safepoint.adapters import keras as adapter
from safepoint.adapters.protocol import Scope
from safepoint.errors import MismatchError, UnsupportedError

opt = keras.optimizers
OPTIMIZERS = {
    "sgd": lambda: opt.SGD(0.1),
    "momentum": lambda: opt.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: opt.Adam(0.01),
    "amsgrad": lambda: opt.Adam(0.01, amsgrad=True),
    "adamw": lambda: opt.AdamW(0.01, weight_decay=0.1),
    "nadam": lambda: opt.Nadam(0.01),
    "adamax": lambda: opt.Adamax(0.01),
    "rmsprop": lambda: opt.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: opt.Adagrad(0.01),
    "adadelta": lambda: opt.Adadelta(0.01),
    "ftrl": lambda: opt.Ftrl(0.01),
    "lion": lambda: opt.Lion(0.001),
    "lamb": lambda: opt.Lamb(0.01),
    "adafactor": lambda: opt.Adafactor(0.01),
    "muon": lambda: opt.Muon(0.01),
    "ema": lambda: opt.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: opt.Adam(0.01, gradient_accumulation_steps=2),
    "loss scale": lambda: opt.LossScaleOptimizer(opt.Adam(0.01), initial_scale=8.0, dynamic_growth_steps=2),
    "schedule": lambda: opt.Adam(opt.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_fresh_compiled_model_goes_on_bit_for_bit(make):
    model = sequential(make())
    for _ in range(3):
        model.train_on_batch(X, Y)
    tree = save(model)
    again = sequential(make())
    load(tree, again)
    assert same(save(again), tree)
    for _ in range(2):
        assert train(model) == train(again)
    assert same(save(model), save(again))


def test_wrapped_optimizers_keep_their_own_names():
    model = sequential(OPTIMIZERS["loss scale"]())
    model.train_on_batch(X, Y)
    names = [n.removeprefix("optimizer/") for n in save(model).leaves if n.startswith("optimizer/")]
    assert {"dynamic_scale", "step_counter", "inner_optimizer/iterations"} <= set(names)
    assert "inner_optimizer/layers/dense/vars/0/momentum" in names


def test_a_template_does_not_build_the_live_optimizer():
    model = sequential()
    model.train_on_batch(X, Y)
    tree, fresh = save(model), sequential()
    before = len(fresh.optimizer.variables)
    template = adapter.template(fresh, tree, Scope())
    assert len(fresh.optimizer.variables) == before
    assert not fresh.optimizer.built
    assert list(template.leaves) == list(tree.leaves)


def test_slots_of_other_weights_are_refused_before_anything_changes():
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    other.compile("adam", "mse")
    other.train_on_batch(X, Y)
    fresh = sequential()
    before = save(fresh)
    with pytest.raises(MismatchError) as caught:
        load(save(other), fresh)
    assert "optimizer/layers/batch_normalization/vars/0/momentum" in caught.value.missing
    assert same(save(fresh), before)
    assert not fresh.optimizer.built


def test_another_optimizer_is_refused():
    model = sequential("adam")
    model.train_on_batch(X, Y)
    other = sequential(opt.SGD(0.1, momentum=0.9))
    other.train_on_batch(X, Y)
    with pytest.raises(MismatchError) as caught:
        load(save(model), other)
    assert "optimizer/layers/dense/vars/0/velocity" in caught.value.unexpected


@pytest.mark.parametrize("alone", [False, True], ids=["in its model", "by itself"])
def test_another_optimizer_is_refused_though_all_names_match(alone, tmp_path):
    """Neither made a step yet: both have a count and a rate, and nothing else."""

    def tracked_together(optimizer):
        model = sequential(None if alone else optimizer)
        return safepoint.Checkpoint(model=model, **({"optimizer": optimizer} if alone else {})), model, optimizer

    tracked_together(opt.Adam(0.001))[0].save(tmp_path)
    checkpoint, model, optimizer = tracked_together(opt.SGD(0.5))
    before = save(model)
    with pytest.raises(MismatchError, match="the state of Adam was saved and the live optimizer is SGD"):
        checkpoint.restore(tmp_path)
    assert same(save(model), before)
    checkpoint.restore(tmp_path, select=["model/layers/*"])
    checkpoint.restore(tmp_path, strict=False)
    assert float(optimizer.learning_rate) == 0.5


def test_a_model_without_optimizer_ignores_a_saved_one():
    model = sequential()
    model.train_on_batch(X, Y)
    plain = sequential(None)
    load(save(model), plain)
    assert (plain.predict(X, verbose=0) == model.predict(X, verbose=0)).all()


def test_a_snapshot_from_before_the_first_step_resets_the_slots():
    model = sequential(opt.Adagrad(0.1))
    tree = save(model)
    model.train_on_batch(X, Y)
    load(tree, model)
    fresh = sequential(opt.Adagrad(0.1))
    load(tree, fresh)
    assert train(model) == train(fresh)
    assert same(save(model), save(fresh))


def tracked(model, optimizer):
    owners = {id(v): f"model/{name}" for name, v in adapter.owners(model)}
    return Scope(owners, frozenset({id(model), id(optimizer)}))


def test_an_optimizer_tracked_by_itself_is_left_out_of_the_model_and_named_by_full_names():
    model = sequential()
    model.train_on_batch(X, Y)
    scope = tracked(model, model.optimizer)
    assert not [n for n in save(model, scope).leaves if n.startswith("optimizer")]
    tree = save(model.optimizer, scope)
    assert list(tree.leaves)[:3] == ["iterations", "learning_rate", "model/layers/dense/vars/0/momentum"]

    fresh = sequential()
    scope = tracked(fresh, fresh.optimizer)
    load(save(model, tracked(model, model.optimizer)), fresh, scope)
    load(tree, fresh.optimizer, scope)
    assert train(model) == train(fresh)
    assert same(save(model), save(fresh))


def test_an_optimizer_of_a_model_that_is_not_tracked_is_refused():
    model = sequential()
    model.train_on_batch(X, Y)
    with pytest.raises(UnsupportedError, match="not in this checkpoint"):
        save(model.optimizer)


def test_several_optimizers_of_one_model():
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(2), keras.layers.Dense(2)
            self.one_optimizer, self.two_optimizer = opt.Adam(), opt.SGD(momentum=0.9)
            self.one.build((None, 4))
            self.two.build((None, 2))
            self.built = True

        def call(self, x):
            return self.two(self.one(x))

        def step(self):
            self.one_optimizer.apply([v * 0 + 1 for v in self.one.trainable_variables], self.one.trainable_variables)
            self.two_optimizer.apply([v * 0 + 1 for v in self.two.trainable_variables], self.two.trainable_variables)

    model = Pair()
    model.step()
    tree = save(model)
    slots = {name for name in tree.leaves if "_optimizer/layers/" in name and "/vars/0/" in name}
    assert slots == {
        "one_optimizer/layers/dense/vars/0/momentum",
        "one_optimizer/layers/dense/vars/0/velocity",
        "two_optimizer/layers/dense_1/vars/0/momentum",
    }
    again = Pair()
    load(tree, again)
    model.step()
    again.step()
    assert same(save(model), save(again))
