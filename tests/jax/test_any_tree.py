"""Trees that nobody thought of: whatever is built of containers and leaves comes back as it was."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jax.comparing import same
from tests.jax.test_flax import Flaxen, Keyless, Own
from tests.jax.test_trees import Pair

from safepoint.adapters import Scope
from safepoint.adapters import jax as adapter
from safepoint.codec import decode_node, encode_node
from safepoint.tree import StateTree, Tensor

_ARRAYS = st.tuples(
    st.sampled_from(["float32", "bfloat16", "int8", "bool", "complex64", "uint4", "float8_e5m2"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 3),
).map(lambda given: jnp.full(given[1], given[2], given[0]))
_LEAVES = st.one_of(
    _ARRAYS,
    st.integers(0, 9).map(jax.random.key),
    st.integers(0, 9).map(lambda seed: jax.random.split(jax.random.key(seed, impl="rbg"), 2)),
    st.floats(0, 1).map(jnp.asarray),
    st.integers(0, 9).map(lambda n: np.full(2, n)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    st.just(jnp.tanh),
)
_KEYS = st.text("abc", min_size=1, max_size=2)


def _containers(inner: Any) -> Any:
    some = st.lists(inner, max_size=3)
    return st.one_of(
        some,
        some.map(tuple),
        st.dictionaries(_KEYS, inner, max_size=3),
        st.dictionaries(_KEYS, inner, max_size=3).map(OrderedDict),
        st.builds(Pair, inner, inner),
        st.builds(lambda w, rest: Flaxen(w, tuple(rest), "name"), inner, some),
        st.builds(lambda w, rest: Own(w, tuple(rest), "name"), inner, some),
        some.map(lambda children: Keyless(*children)),
    )


def _blank(leaf: Any) -> Any:
    """Another leaf of the same kind."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.zeros_like(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
    return jnp.zeros_like(leaf)


@settings(max_examples=150)
@given(st.recursive(_LEAVES, _containers, max_leaves=8))
def test_any_tree_comes_back(tree: Any) -> None:
    value = [jnp.ones(1), tree]
    captured = adapter.to_tree(value, Scope())
    written = {
        name: Tensor.of_bytes(leaf.read().copy(), leaf.spec) if isinstance(leaf, Tensor) else leaf
        for name, leaf in captured.leaves.items()
    }
    saved = StateTree(written, decode_node(encode_node(captured.skeleton)))
    live = jax.tree.map(_blank, value)
    accepted = adapter.template(live, saved, Scope())
    assert accepted.leaves.keys() == saved.leaves.keys()
    adapter.examine(saved, live, Scope())
    assert same(adapter.from_tree(saved, live, Scope()), value)
