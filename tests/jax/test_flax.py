"""Flax's immutable trees: Linen variables, frozen dictionaries, train states; and dataclasses, its own and others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState
from tests.jax.comparing import same

import safepoint


class Network(nn.Module):
    """A convolution with running statistics and dropout."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(2)(x.mean((1, 2)))


class State(TrainState):
    batch_stats: Any
    key: Any


def make(seed: int) -> State:
    network = Network()
    variables = network.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)), train=False)
    return State.create(
        apply_fn=network.apply,
        params=variables["params"],
        tx=optax.adamw(1e-2),
        batch_stats=variables["batch_stats"],
        key=jax.random.key(seed),
    )


def _train(state: State) -> tuple[State, Any]:
    key, data, dropout = jax.random.split(state.key, 3)
    x = jax.random.normal(data, (4, 8, 8, 1))

    def loss_of(params: Any) -> Any:
        y, updated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            rngs={"dropout": dropout},
            mutable=["batch_stats"],
        )
        return jnp.mean((y - 1) ** 2), updated["batch_stats"]

    (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats, key=key), loss


train = jax.jit(_train, donate_argnums=0)


def test_a_train_state_resumes_exactly(tmp_path: Path) -> None:
    steps, killed = 7, 3
    state, losses = make(0), []
    for _ in range(steps):
        state, loss = train(state)
        losses.append(loss)

    def run(until: int) -> tuple[State, list[Any]]:
        checkpoint, seen = safepoint.Checkpoint(state=make(0)), []
        with safepoint.CheckpointManager(checkpoint, tmp_path) as manager:
            for step in manager.steps(steps):
                if step == until:
                    break
                new, loss = train(checkpoint["state"])
                manager.save(state=new)
                seen.append(loss)
        return checkpoint["state"], seen

    _, before = run(killed)
    resumed, after = run(steps)
    assert same([*before, *after], losses)
    assert same(jax.tree.leaves(resumed), jax.tree.leaves(state))
    assert isinstance(resumed, State)


def test_functions_and_the_transformation_are_the_live_state_s(tmp_path: Path) -> None:
    source, live = make(0), make(1)
    safepoint.Checkpoint(state=source).save(tmp_path, state=train(source)[0])
    checkpoint = safepoint.Checkpoint(state=live)
    report = checkpoint.restore(tmp_path)
    assert checkpoint["state"].tx is live.tx
    assert checkpoint["state"].apply_fn is live.apply_fn
    assert checkpoint["state"].step == 1
    assert {"state/step", "state/params/Dense_0/kernel", "state/opt_state/0/nu/Conv_0/bias"} <= set(report.matched)


def test_parameters_alone_are_taken_from_a_snapshot_of_everything(tmp_path: Path) -> None:
    source = make(0)
    safepoint.Checkpoint(state=source).save(tmp_path, state=source)
    live = make(1)
    checkpoint = safepoint.Checkpoint(params=live.params)
    checkpoint.restore(tmp_path, rename={"^state/params/": "params/"})
    assert same(checkpoint["params"], source.params)
    checkpoint = safepoint.Checkpoint(state=live)
    checkpoint.restore(tmp_path, select=["state/params"])
    assert same(checkpoint["state"].params, source.params)
    assert checkpoint["state"].opt_state is live.opt_state
    assert checkpoint["state"].key is live.key


def test_variables_are_frozen_where_the_live_ones_are(tmp_path: Path) -> None:
    variables = Network().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    safepoint.Checkpoint(variables=variables).save(tmp_path, variables=variables)
    checkpoint = safepoint.Checkpoint(variables=freeze(jax.tree.map(jnp.zeros_like, variables)))
    report = checkpoint.restore(tmp_path)
    assert isinstance(checkpoint["variables"], FrozenDict)
    assert same(checkpoint["variables"], freeze(variables))
    assert "variables/batch_stats/BatchNorm_0/mean" in report.matched


@struct.dataclass
class Flaxen:
    w: Any
    rest: tuple[Any, ...]
    name: str = struct.field(pytree_node=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    w: Any
    rest: tuple[Any, ...]
    name: str = dataclasses.field(metadata={"static": True})


class Keyless:
    """Registered without keys, as older libraries do: its children are called by their positions."""

    def __init__(self, *children: Any) -> None:
        self.children = children


jax.tree_util.register_pytree_node(Keyless, lambda node: (node.children, None), lambda _, children: Keyless(*children))


def test_dataclasses_keep_their_types_and_static_fields(tmp_path: Path) -> None:
    for kind in (Flaxen, Own):
        live = kind(jnp.zeros(2), ({"b": jnp.zeros(1)}, None), "live")
        value = kind(jnp.ones(2), ({"b": jnp.ones(1)}, None), "saved")
        safepoint.Checkpoint(tree=live).save(tmp_path / kind.__name__, tree=value)
        checkpoint = safepoint.Checkpoint(tree=live)
        report = checkpoint.restore(tmp_path / kind.__name__)
        assert same(checkpoint["tree"], dataclasses.replace(value, name="live"))
        assert report.matched == ("tree/w", "tree/rest/0/b", "tree/rest/1")


def test_children_without_names_are_called_by_position(tmp_path: Path) -> None:
    safepoint.Checkpoint(tree=Keyless(1)).save(tmp_path, tree=Keyless(jnp.ones(2), {"a": jnp.ones(1)}))
    checkpoint = safepoint.Checkpoint(tree=Keyless(jnp.zeros(2), {"a": jnp.zeros(1)}))
    assert checkpoint.restore(tmp_path).matched == ("tree/0", "tree/1/a")
    assert isinstance(checkpoint["tree"], Keyless)
    np.testing.assert_array_equal(checkpoint["tree"].children[0], [1, 1])
