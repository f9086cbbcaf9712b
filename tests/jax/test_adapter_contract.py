"""The JAX adapter keeps every adapter's promises, for each kind of object."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tests.jax.test_equinox import make as make_equinox
from tests.jax.test_flax import Flaxen, Keyless, Own
from tests.jax.test_flax import make as make_train_state
from tests.jax.test_nnx import Network

from safepoint.adapters import jax as adapter
from safepoint.testing.adapter_suite import AdapterSuite, Make


def _params(seed: int) -> Any:
    first, second = jax.random.split(jax.random.key(seed))
    return {"w": jax.random.normal(first, (3, 2)), "b": [jax.random.normal(second, (2,), jnp.bfloat16), jnp.zeros(0)]}


def _optimizer(seed: int) -> Any:
    params = _params(seed)
    transformation = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=0.1 + seed))
    return transformation.update(params, transformation.init(params), params)[1]


def _values(seed: int) -> Any:
    return {"n": seed, "f": seed / 3, "none": None, "text": f"{seed}", "host": np.full(2, seed), "w": jnp.full(2, seed)}


def _nnx_optimizer(seed: int) -> Any:
    return nnx.Optimizer(Network(seed), optax.adam(1e-3), wrt=nnx.Param)


# Immutable, and slow to make: every test may have the same ones.
_train_state, _equinox = functools.cache(make_train_state), functools.cache(make_equinox)


class TestJaxAdapter(AdapterSuite):
    adapter = adapter

    def objects(self) -> Mapping[str, Make]:
        return {
            "an array": lambda seed: jnp.full((2, 3), seed),
            "a key": jax.random.key,
            "keys": lambda seed: jax.random.split(jax.random.key(seed, impl="rbg"), 3),
            "parameters": _params,
            "an optimizer": _optimizer,
            "values": _values,
            "int4": lambda seed: [jnp.full(5, seed, jnp.int4), jnp.full(5, seed, jnp.float8_e4m3fn)],
            "complex": lambda seed: (jnp.full(3, seed + 1j), jnp.full((), seed > 0)),
            "weak": lambda seed: {"w": jnp.asarray(float(seed)), "n": jnp.asarray(seed)},
            "no state": lambda _: optax.sgd(0.1).init(_params(0)),
            "a train state": _train_state,
            "a flax dataclass": lambda seed: Flaxen(jnp.full(2, seed), (jnp.full(1, seed),), "name"),
            "a dataclass": lambda seed: Own(jnp.full(2, seed), (jnp.full(1, seed),), "name"),
            "a node without keys": lambda seed: Keyless(jnp.full(2, seed), jnp.full(1, seed)),
            "an equinox module": lambda seed: _equinox(seed)["model"],
            "an equinox state": lambda seed: _equinox(seed)["state"],
            "an equinox layer": lambda seed: eqx.nn.GRUCell(2, 3, key=jax.random.key(seed)),
            "an nnx module": Network,
            "an nnx optimizer": _nnx_optimizer,
            "nnx rngs": lambda seed: nnx.Rngs(seed, dropout=seed + 1),
            "an nnx state": lambda seed: nnx.state(Network(seed)),
            "an nnx variable": lambda seed: nnx.Variable(jnp.full(2, seed)),
        }
