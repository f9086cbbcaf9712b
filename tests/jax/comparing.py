"""What the tests of this folder share: whether two trees are the same, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal: structure, types, dtypes, weak types, key implementations, bytes."""
    ones, structure = jax.tree_util.tree_flatten(one)
    others, other_structure = jax.tree_util.tree_flatten(other)
    return structure == other_structure and all(map(same_leaf, ones, others))


def same_leaf(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if not isinstance(one, jax.Array):
        return repr(one) == repr(other)
    if (one.dtype, one.sharding, one.committed) != (other.dtype, other.sharding, other.committed):
        return False
    if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return one.weak_type == other.weak_type and np.asarray(one).tobytes() == np.asarray(other).tobytes()
