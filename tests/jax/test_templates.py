"""Restores onto templates of another dtype, where that is asked for: containers and static fields are the live ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import safepoint


class Moments(NamedTuple):
    mean: Any
    gap: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: Any
    moments: Moments
    name: str = dataclasses.field(metadata={"static": True}, default="live")


def layer(dtype: Any, name: str) -> Layer:
    return Layer(jnp.arange(6, dtype=dtype).reshape(2, 3) / 3, Moments(jnp.ones(2, dtype), None), name)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("abstract", [True, False])
def test_a_tree_is_restored_onto_another_dtype(dtype: Any, abstract: Any, tmp_path: Path) -> None:
    saved = {"layer": layer(jnp.float32, "saved"), "key": jax.random.key(3), "step": jnp.int32(4)}
    safepoint.Checkpoint(tree=saved).save(tmp_path, tree=saved)
    live: Any = {"layer": layer(dtype, "live"), "key": jax.random.key(0), "step": jnp.int32(0)}
    checkpoint = safepoint.Checkpoint(tree=jax.eval_shape(lambda: live) if abstract else live)
    with pytest.raises(safepoint.MismatchError, match="cast=True"):
        checkpoint.restore(tmp_path)
    checkpoint.restore(tmp_path, cast=True)
    found = checkpoint["tree"]
    assert type(found["layer"].moments) is Moments
    assert (found["layer"].name, found["layer"].moments.gap, int(found["step"])) == ("live", None, 4)
    assert jnp.array_equal(found["layer"].w, saved["layer"].w.astype(dtype))
    assert found["layer"].w.dtype == dtype
    assert jnp.array_equal(jax.random.key_data(found["key"]), jax.random.key_data(saved["key"]))


def test_a_module_of_nnx_is_restored_onto_another_dtype(tmp_path: Path) -> None:
    saved = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    safepoint.Checkpoint(model=saved).save(tmp_path)
    live = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    safepoint.Checkpoint(model=live).restore(tmp_path, cast=True)
    assert live.kernel[...].dtype == jnp.bfloat16
    assert np.array_equal(live.kernel[...], saved.kernel[...].astype(jnp.bfloat16))
