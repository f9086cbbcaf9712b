"""Equinox modules: functions and static fields are the live module's, every other leaf is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.jax.comparing import same

import safepoint

_OPTIMIZER = optax.adam(1e-2)


class Network(eqx.Module):
    mlp: eqx.nn.MLP
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    scale: float
    name: str = eqx.field(static=True)

    def __init__(self, seed: int, name: str = "network") -> None:
        self.mlp = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(seed))
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.scale = 1.0 + seed
        self.name = name

    def __call__(self, x: Any, state: Any, key: Any) -> Any:
        x, state = self.norm(self.mlp(x), state)
        return self.dropout(x, key=key) * self.scale, state


def make(seed: int) -> dict[str, Any]:
    model, state = eqx.nn.make_with_state(Network)(seed)
    opt_state = _OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    return {"model": model, "state": state, "opt_state": opt_state, "key": jax.random.key(seed)}


@eqx.filter_jit(donate="all")
def train(model: Any, state: Any, opt_state: Any, key: Any) -> Any:
    key, data, dropout = jax.random.split(key, 3)
    x = jax.random.normal(data, (8, 4))

    def loss_of(model: Any, state: Any) -> Any:
        call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        y, state = call(x, state, jax.random.split(dropout, 8))
        return jnp.mean((y - 1) ** 2), state

    (loss, state), gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(model, state)
    updates, opt_state = _OPTIMIZER.update(gradients, opt_state, eqx.filter(model, eqx.is_inexact_array))
    return {"model": eqx.apply_updates(model, updates), "state": state, "opt_state": opt_state, "key": key}, loss


def arrays(tree: Any) -> Any:
    return jax.tree_util.tree_leaves(eqx.filter(tree, eqx.is_array))


def test_equinox_with_optax_resumes_exactly(tmp_path: Path) -> None:
    steps, killed = 8, 3
    values, losses = make(0), []
    for _ in range(steps):
        values, loss = train(**values)
        losses.append(loss)

    def run(until: int) -> tuple[dict[str, Any], list[Any]]:
        checkpoint, seen = safepoint.Checkpoint(**make(0)), []
        assert checkpoint.immutable == {"model", "state", "opt_state", "key"}
        with safepoint.CheckpointManager(checkpoint, tmp_path) as manager:
            for step in manager.steps(steps):
                if step == until:
                    break
                new, loss = train(**checkpoint.objects)
                manager.save(**new)
                seen.append(loss)
        return dict(checkpoint.objects), seen

    _, before = run(killed)
    resumed, after = run(steps)
    assert same([*before, *after], losses)
    assert same(arrays(resumed), arrays(values))
    assert jax.tree_util.tree_structure(resumed["model"]) == jax.tree_util.tree_structure(values["model"])


def test_names_are_fields(tmp_path: Path) -> None:
    values = make(0)
    checkpoint = safepoint.Checkpoint(**values)
    checkpoint.save(tmp_path, **values)
    names = set(checkpoint.restore(tmp_path).matched)
    assert {"model/mlp/layers/0/weight", "model/scale", "opt_state/0/mu/mlp/layers/0/weight", "key"} <= names
    assert not any("activation" in name for name in names if name.startswith("model/"))


def test_functions_and_static_fields_are_the_live_module_s(tmp_path: Path) -> None:
    source, live = Network(0, name="source"), Network(1, name="live")
    live = eqx.tree_at(lambda model: model.mlp.activation, live, jnp.tanh)
    safepoint.Checkpoint(model=source).save(tmp_path, model=source)
    checkpoint = safepoint.Checkpoint(model=live)
    checkpoint.restore(tmp_path)
    restored = checkpoint["model"]
    assert type(restored) is Network
    assert restored.name == "live"
    assert restored.mlp.activation is jnp.tanh
    assert restored.scale == 1.0
    np.testing.assert_array_equal(restored.mlp.layers[0].weight, source.mlp.layers[0].weight)
    assert live.scale == 2.0


def test_a_layer_without_bias_is_told_from_one_with(tmp_path: Path) -> None:
    source = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    safepoint.Checkpoint(model=source).save(tmp_path, model=source)
    live = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(1))
    with pytest.raises(safepoint.MismatchError, match=r"differs     model/bias   live None, saved float32\[2\]"):
        safepoint.Checkpoint(model=live).restore(tmp_path)


def test_an_abstract_module_is_template_enough(tmp_path: Path) -> None:
    source = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    safepoint.Checkpoint(model=source).save(tmp_path, model=source)
    abstract = eqx.filter_eval_shape(eqx.nn.MLP, 4, 3, 8, 2, key=jax.random.key(0))
    checkpoint = safepoint.Checkpoint(model=abstract)
    checkpoint.restore(tmp_path)
    assert same(arrays(checkpoint["model"]), arrays(source))
    with pytest.raises(safepoint.UnsupportedError, match="ShapeDtypeStruct has no content"):
        safepoint.Checkpoint(model=abstract).save(tmp_path / "other", model=abstract)
