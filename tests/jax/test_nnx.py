"""Flax NNX objects are restored in place: modules, optimizers, rngs, metrics, whoever holds a reference to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tests.jax.comparing import same

import safepoint


class Network(nnx.Module):
    def __init__(self, seed: int, width: int = 6) -> None:
        rngs = nnx.Rngs(seed, dropout=seed + 1)
        self.dense = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.tied = self.blocks[0]
        self.width = width
        self.activation = nnx.relu

    def __call__(self, x: Any) -> Any:
        x = self.dropout(self.norm(self.activation(self.dense(x))))
        for block in self.blocks:
            x = x + block(x)
        return self.tied(x)


def state_of(*objects: Any) -> Any:
    return [nnx.to_pure_dict(nnx.state(obj)) for obj in objects]


@nnx.jit
def train(model: Any, optimizer: Any, metrics: Any, x: Any) -> Any:
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
    optimizer.update(model, gradients)
    metrics.update(loss=loss)
    return loss


def make(seed: int) -> dict[str, Any]:
    model = Network(seed)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    return {"model": model, "optimizer": optimizer, "metrics": nnx.MultiMetric(loss=nnx.metrics.Average("loss"))}


def batch(step: int) -> Any:
    return jax.random.normal(jax.random.key(step), (8, 4))


def test_names_are_attributes_and_positions_without_value(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(**make(0))
    checkpoint.save(tmp_path)
    names = set(checkpoint.restore(tmp_path).matched)
    assert {
        "model/dense/kernel",
        "model/norm/mean",
        "model/blocks/0/bias",
        "model/dropout/rngs/count",
        "model/dropout/rngs/key",
        "optimizer/step",
        "optimizer/opt_state/0/mu/dense/kernel",
        "metrics/loss/total",
    } <= names
    assert not any("value" in name or "tied" in name for name in names)


def test_objects_are_changed_in_place_and_need_not_be_passed(tmp_path: Path) -> None:
    trained = make(0)
    for step in range(3):
        train(*trained.values(), batch(step))
    checkpoint = safepoint.Checkpoint(**trained)
    assert checkpoint.immutable == frozenset()
    checkpoint.save(tmp_path)
    others = make(1)
    model, kernel = others["model"], others["model"].dense.kernel
    other = safepoint.Checkpoint(**others)
    other.restore(tmp_path)
    assert other["model"] is model
    assert model.dense.kernel is kernel
    assert model.tied is model.blocks[0]
    assert same(state_of(*others.values()), state_of(*trained.values()))
    assert same(train(*others.values(), batch(9)), train(*trained.values(), batch(9)))


def test_dropout_optimizer_and_metrics_resume_exactly(tmp_path: Path) -> None:
    steps, killed = 8, 3
    objects = make(0)
    losses = [train(*objects.values(), batch(step)) for step in range(steps)]

    def run(until: int) -> tuple[dict[str, Any], list[Any]]:
        fresh, seen = make(0), []
        with safepoint.CheckpointManager(safepoint.Checkpoint(**fresh), tmp_path) as manager:
            for step in manager.steps(steps):
                if step == until:
                    break
                seen.append(train(*fresh.values(), batch(step)))
                manager.save(metrics={"loss": seen[-1]})
        return fresh, seen

    _, before = run(killed)
    resumed, after = run(steps)
    assert same([*before, *after], losses)
    assert same(state_of(*resumed.values()), state_of(*objects.values()))


def test_rngs_go_on_where_they_were(tmp_path: Path) -> None:
    rngs = nnx.Rngs(0, params=1)
    rngs.params()
    safepoint.Checkpoint(rngs=rngs).save(tmp_path)
    other = nnx.Rngs(5, params=6)
    safepoint.Checkpoint(rngs=other).restore(tmp_path)
    assert same(other.params(), rngs.params())
    assert same(other.default(), rngs.default())


def test_a_single_variable_is_restored_in_place(tmp_path: Path) -> None:
    counter = nnx.Variable(jnp.array([3]))
    safepoint.Checkpoint(counter=counter).save(tmp_path)
    other = nnx.Variable(jnp.array([0]))
    report = safepoint.Checkpoint(counter=other).restore(tmp_path)
    assert report.matched == ("counter",)
    assert other[0] == 3


def test_a_state_is_a_tree_with_the_names_of_its_module(tmp_path: Path) -> None:
    model = Network(0)
    safepoint.Checkpoint(model=model).save(tmp_path)
    checkpoint = safepoint.Checkpoint(model=nnx.state(Network(1)))
    assert checkpoint.immutable == {"model"}
    checkpoint.restore(tmp_path)
    assert isinstance(checkpoint["model"], nnx.State)
    assert same(nnx.to_pure_dict(checkpoint["model"]), nnx.to_pure_dict(nnx.state(model)))
    assert isinstance(checkpoint["model"]["dense"]["kernel"], nnx.Param)


def test_a_filtered_state_takes_its_part_of_a_whole_module(tmp_path: Path) -> None:
    model = Network(0)
    safepoint.Checkpoint(model=model).save(tmp_path)
    checkpoint = safepoint.Checkpoint(model=nnx.state(Network(1), nnx.Param))
    with pytest.raises(safepoint.MismatchError, match="unexpected  model/dropout/rngs/key"):
        checkpoint.restore(tmp_path)
    checkpoint.restore(tmp_path, strict=False)
    assert same(nnx.to_pure_dict(checkpoint["model"]), nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_a_part_of_a_module_is_restored_and_the_rest_left_alone(tmp_path: Path) -> None:
    source, model = Network(0), Network(1)
    before = state_of(model)[0]
    safepoint.Checkpoint(model=source).save(tmp_path)
    safepoint.Checkpoint(model=model).restore(tmp_path, select=["model/dense"])
    after = state_of(model)[0]
    assert same(after.pop("dense"), state_of(source)[0]["dense"])
    before.pop("dense")
    assert same(after, before)


def test_a_module_of_another_size_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    safepoint.Checkpoint(**make(0)).save(tmp_path)
    model = Network(1, width=5)
    before = state_of(model)
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(model=model).restore(tmp_path)
    assert "model/dense/kernel" in caught.value.differs
    assert same(state_of(model), before)


def test_modules_in_a_dictionary_have_names_of_their_own(tmp_path: Path) -> None:
    models = {"generator": Network(0), "critics": [Network(1)]}
    safepoint.Checkpoint(models=models).save(tmp_path)
    others = {"generator": Network(2), "critics": [Network(3)]}
    report = safepoint.Checkpoint(models=others).restore(tmp_path)
    assert "models/critics/0/dense/kernel" in report.matched
    assert same(state_of(others["generator"], *others["critics"]), state_of(models["generator"], *models["critics"]))


def test_a_module_inside_a_tree_of_arrays_is_refused_by_its_path() -> None:
    with pytest.raises(safepoint.UnsupportedError, match=r"'inner/model' is a Network, restored in place"):
        safepoint.Checkpoint(state={"ema": jnp.ones(2), "inner": {"model": Network(0)}})


def test_what_has_a_name_of_its_own_is_left_out_of_what_contains_it(tmp_path: Path) -> None:
    model = Network(0)
    both = nnx.ModelAndOptimizer(model, optax.adam(1e-3))
    checkpoint = safepoint.Checkpoint(model=model, optimizer=both)
    checkpoint.save(tmp_path)
    names = checkpoint.restore(tmp_path).matched
    assert "model/dense/kernel" in names
    assert "optimizer/opt_state/0/mu/dense/kernel" in names
    assert not any(name.startswith("optimizer/model/") for name in names)
    alone = safepoint.Checkpoint(both=both)
    alone.save(tmp_path / "alone")
    assert "both/model/dense/kernel" in alone.restore(tmp_path / "alone").matched


def test_a_module_that_a_step_returned_anew_may_be_passed(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(model=Network(0))
    new = nnx.clone(Network(1))
    checkpoint.save(tmp_path, model=new)
    other = Network(2)
    safepoint.Checkpoint(model=other).restore(tmp_path)
    assert checkpoint["model"] is new
    assert same(state_of(other), state_of(new))


def test_an_old_flax_is_refused_for_its_own_objects_only(monkeypatch: Any) -> None:
    module = Network(0)
    monkeypatch.delattr(nnx, "Pytree")
    with pytest.raises(safepoint.UnsupportedError, match="too old"):
        safepoint.Checkpoint(model=module)
    safepoint.Checkpoint(tree={"w": jnp.ones(1)}, plain={"n": np.ones(1)})


def test_arrays_that_are_no_variables_are_state_too(tmp_path: Path) -> None:
    class Buffers(nnx.Module):
        def __init__(self, seed: int) -> None:
            self.table = nnx.data(jnp.full(3, seed))
            self.tree = nnx.Variable({"a": jnp.full(2, seed), "b": [jnp.full((), seed)]})
            self.nothing = nnx.Variable(None)

    source, other = Buffers(4), Buffers(0)
    safepoint.Checkpoint(model=source).save(tmp_path)
    report = safepoint.Checkpoint(model=other).restore(tmp_path)
    assert set(report.matched) == {"model/table", "model/tree/a", "model/tree/b/0", "model/nothing"}
    assert int(other.table[0]) == 4
    assert int(other.tree.get_value()["b"][0]) == 4


def test_a_deleted_variable_is_named(tmp_path: Path) -> None:
    model = Network(0)
    model.dense.kernel[...].delete()
    with pytest.raises(safepoint.UnsupportedError, match="'dense/kernel' was donated or deleted"):
        safepoint.Checkpoint(model=model).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_predictions_are_those_of_the_saved_module(tmp_path: Path) -> None:
    source, other = Network(0), Network(1)
    safepoint.Checkpoint(model=source).save(tmp_path)
    safepoint.Checkpoint(model=other).restore(tmp_path)
    source.eval()
    other.eval()
    np.testing.assert_array_equal(source(batch(0)), other(batch(0)))
