"""Any pytree is saved and restored exactly, as a new tree of the live one's types."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.jax.comparing import same

import safepoint


def saved_and_restored(path: Path, live: Any, value: Any) -> Any:
    """`value`, saved and restored into a checkpoint of `live`."""
    safepoint.Checkpoint(tree=live).save(path, tree=value)
    checkpoint = safepoint.Checkpoint(tree=live)
    checkpoint.restore(path)
    return checkpoint["tree"]


class Pair(NamedTuple):
    left: Any
    right: Any


TREES: dict[str, Any] = {
    "dictionaries, lists, tuples": lambda x: {"a": [x, (x + 1, {"b": x * 2})], "empty": {}, "nothing": []},
    "one array": lambda x: x,
    "a tuple of arrays": lambda x: (x, x + 1),
    "a named tuple": lambda x: Pair(x, Pair({"w": x + 1}, None)),
    "integer keys": lambda x: {1: x, 0: x + 1},
    "an ordered dictionary": lambda x: OrderedDict(b=x, a=x + 1),
    "None": lambda x: {"bias": None, "w": x},
    "values": lambda x: {"w": x, "rate": 0.1, "name": "adam", "on": True, "data": b"\0", "z": 1j, "nan": float("nan")},
    "numpy arrays": lambda x: {"w": x, "host": np.arange(3.0), "scalar": np.float64(2.5)},
    "functions": lambda x: {"w": x, "f": jax.nn.relu, "g": jax.jit(jnp.sin), "dtype": np.dtype("float32")},
    "a partial": lambda x: jax.tree_util.Partial(jnp.add, x),
    "a typed key": lambda x: jax.random.fold_in(jax.random.key(0), int(x.sum())),
    "keys": lambda x: {"a": jax.random.split(jax.random.key(int(x.sum())), 3), "raw": jax.random.PRNGKey(int(x.sum()))},
    "a key of rbg": lambda x: [jax.random.key(int(x.sum()), impl="rbg")],
    "no elements": lambda x: {"w": x[:0], "scalar": x[0]},
    "weak types": lambda x: {"w": jnp.asarray(float(x[0])), "v": jnp.asarray(3), "s": x},
    "adam": lambda x: optax.adam(1e-3).update({"w": x}, optax.adam(1e-3).init({"w": x}))[1],
    "a chain": lambda x: optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(1.0, 10))).init({"w": x}),
    "hyperparameters": lambda x: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9).init({"w": x}),
    "masked": lambda x: optax.masked(optax.adam(1e-3), {"w": True, "v": False}).init({"w": x, "v": x}),
    "a named chain": lambda x: optax.named_chain(("clip", optax.clip(1.0)), ("adam", optax.adam(1e-3))).init({"w": x}),
    "no state at all": lambda x: optax.sgd(0.1).init({"w": x}),
}


@pytest.mark.parametrize("word", TREES)
def test_a_tree_comes_back_as_it_was(word: str, tmp_path: Path) -> None:
    live, value = TREES[word](jnp.zeros(4)), TREES[word](jnp.arange(4.0) + 1)
    restored = saved_and_restored(tmp_path, live, value)
    assert same(restored, value)


DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "bfloat16", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e3m4", "int2", "int4", "uint4", "float4_e2m1fn"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_kept_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    value = {"w": jax.device_put(np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))), "one": jnp.ones((), dtype)}
    live = jax.tree.map(jnp.zeros_like, value)
    assert same(saved_and_restored(tmp_path, live, value), value)


def test_names_are_keys_positions_and_fields(tmp_path: Path) -> None:
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    opt_state = optax.adam(1e-3).init(params)
    checkpoint = safepoint.Checkpoint(params=params, opt_state=opt_state, key=jax.random.key(0))
    checkpoint.save(tmp_path, params=params, opt_state=opt_state, key=jax.random.key(0))
    assert set(checkpoint.restore(tmp_path).matched) == {
        "params/dense/kernel",
        "params/dense/bias",
        "opt_state/0/count",
        "opt_state/0/mu/dense/kernel",
        "opt_state/0/mu/dense/bias",
        "opt_state/0/nu/dense/kernel",
        "opt_state/0/nu/dense/bias",
        "key",
    }


def test_a_tree_must_be_passed_at_each_save(tmp_path: Path) -> None:
    params = {"w": jnp.ones(2)}
    checkpoint = safepoint.Checkpoint(params=params, key=jax.random.key(0))
    with pytest.raises(TypeError, match="needs the current value of 'key': save\\(key=key\\)"):
        checkpoint.save(tmp_path, params=params)
    with pytest.raises(TypeError, match="'other', which is not tracked"):
        checkpoint.save(tmp_path, params=params, key=jax.random.key(0), other=params)
    manager = safepoint.CheckpointManager(checkpoint, tmp_path, save=[safepoint.EverySteps(100)])
    manager.resume()
    with pytest.raises(TypeError, match="needs the current value"):
        manager.save(1)
    assert not safepoint.Repository(tmp_path).exists


def test_the_newest_value_is_known_even_where_no_policy_is_due(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(w=jnp.zeros(()))
    manager = safepoint.CheckpointManager(checkpoint, tmp_path, save=[safepoint.EverySteps(4)])
    for _ in manager.steps(10):
        manager.save(w=checkpoint["w"] + 1)
    assert checkpoint["w"] == 10
    again = safepoint.Checkpoint(w=jnp.zeros(()))
    assert safepoint.CheckpointManager(again, tmp_path).resume() == 10
    assert again["w"] == 10


def test_lists_of_values_are_as_long_as_they_were_saved(tmp_path: Path) -> None:
    def make(losses: list[Any]) -> Any:
        return {"w": jnp.ones(2), "losses": losses, "words": ["a"], "nested": {"empty": []}}

    for number, losses in enumerate(([], [0.5], [1, 2.5, "x"], [0.25] * 500, [jnp.asarray(1.5)])):
        value = make(losses)
        for live in (make([]), make([9.0, 8.0]), make([0.0] * 100)):
            if losses or not live["losses"]:
                assert same(saved_and_restored(tmp_path / f"{number}.{len(live['losses'])}", live, value), value)


def test_a_run_with_a_history_of_losses_resumes(tmp_path: Path) -> None:
    def make() -> Any:
        return safepoint.Checkpoint(state={"w": jnp.zeros(()), "losses": []})

    for total in (3, 150):
        checkpoint = make()
        with safepoint.CheckpointManager(checkpoint, tmp_path, save=[safepoint.EverySteps(40)]) as manager:
            for step in manager.steps(total):
                state = checkpoint["state"]
                manager.save(state={"w": state["w"] + 1, "losses": [*state["losses"], float(step)]})
    assert checkpoint["state"]["losses"] == [float(step) for step in range(150)]


def test_a_part_of_a_list_of_values_is_taken(tmp_path: Path) -> None:
    safepoint.Checkpoint(tree={"w": jnp.ones(1), "a": [1, 2, 3]}).save(
        tmp_path, tree={"w": jnp.ones(1), "a": [1, 2, 3]}
    )
    checkpoint = safepoint.Checkpoint(tree={"w": jnp.ones(1), "a": [7, 8]})
    checkpoint.restore(tmp_path, select=["tree/a/1"])
    assert checkpoint["tree"]["a"] == [7, 2]


def test_arrays_do_not_grow_a_list(tmp_path: Path) -> None:
    safepoint.Checkpoint(tree=jnp.ones(1)).save(tmp_path, tree={"w": jnp.ones(1), "layers": [jnp.ones(3)]})
    with pytest.raises(safepoint.MismatchError, match="unexpected  tree/layers/0"):
        safepoint.Checkpoint(tree={"w": jnp.ones(1), "layers": []}).restore(tmp_path)
