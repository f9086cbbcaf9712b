"""JAX trees beside everything else: other libraries' containers, large states, damage, missing libraries."""

from __future__ import annotations

import subprocess
import sys
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
from safepoint.api import restore


def test_what_jax_saved_is_read_into_numpy_and_back(tmp_path: Path) -> None:
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3.0)}, "layers": [jnp.ones(1)]}
    safepoint.Checkpoint(params=params).save(tmp_path / "jax", params=params)
    host: dict[str, Any] = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    kernel = host["dense"]["kernel"]
    safepoint.Checkpoint(params=host).restore(tmp_path / "jax")
    assert kernel.tolist() == [[1, 1, 1], [1, 1, 1]]
    safepoint.Checkpoint(params=host).save(tmp_path / "numpy")
    checkpoint = safepoint.Checkpoint(params=jax.tree.map(jnp.zeros_like, params))
    checkpoint.restore(tmp_path / "numpy")
    assert same(checkpoint["params"], params)


def test_what_a_module_saved_is_read_into_a_dictionary(tmp_path: Path) -> None:
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    safepoint.Checkpoint(model=module).save(tmp_path)
    arrays = {"kernel": np.zeros((2, 3), np.float32), "bias": np.ones(3, np.float32)}
    checkpoint = safepoint.Checkpoint(model=arrays)
    checkpoint.restore(tmp_path)
    assert checkpoint["model"] is arrays
    np.testing.assert_array_equal(arrays["kernel"], module.kernel[...])
    np.testing.assert_array_equal(arrays["bias"], module.bias[...])
    tree = safepoint.Checkpoint(model={"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)})
    tree.restore(tmp_path)
    np.testing.assert_array_equal(tree["model"]["kernel"], module.kernel[...])


def test_a_tree_of_arrays_lives_beside_objects_that_are_restored_in_place(tmp_path: Path) -> None:
    params, generator, notes = {"w": jnp.ones(3)}, np.random.default_rng(1), {"patience": 3, "best": np.ones(2)}
    checkpoint = safepoint.Checkpoint(params=params, rng=generator, notes=notes)
    assert checkpoint.immutable == {"params"}
    checkpoint.save(tmp_path, params=params)
    expected = generator.random(3)
    notes.update(patience=9)
    checkpoint.restore(tmp_path)
    assert notes["patience"] == 3
    np.testing.assert_array_equal(generator.random(3), expected)


def test_a_state_too_large_to_stage_is_read_in_two_passes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(restore, "_STAGED_BYTES", 0)
    params = {f"w{i}": jnp.full((300, 200), i, jnp.float32) for i in range(20)} | {"key": jax.random.key(4)}
    safepoint.Checkpoint(params=params).save(tmp_path, params=params)
    live = jax.tree.map(jnp.zeros_like, {name: x for name, x in params.items() if name != "key"})
    for options in ({}, {"in_place": True}):
        checkpoint = safepoint.Checkpoint(params=live | {"key": jax.random.key(0)})
        checkpoint.restore(tmp_path, **options)
        assert same(checkpoint["params"], params)


@pytest.mark.parametrize("staged_bytes", [0, 1 << 30])
def test_damage_leaves_every_live_tree_as_it_was(tmp_path: Path, staged_bytes: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(restore, "_STAGED_BYTES", staged_bytes)
    params, module = {"w": jnp.ones((300, 200))}, nnx.Linear(50, 60, rngs=nnx.Rngs(0))
    safepoint.Checkpoint(params=params, module=module).save(tmp_path, params=params)
    (pack,) = (tmp_path / "packs").iterdir()
    content = bytearray(pack.read_bytes())
    content[-3] ^= 1
    pack.write_bytes(content)
    other = nnx.Linear(50, 60, rngs=nnx.Rngs(1))
    kernel, live = np.array(other.kernel[...]), {"w": jnp.zeros((300, 200))}
    checkpoint = safepoint.Checkpoint(params=live, module=other)
    with pytest.raises(safepoint.CorruptionError):
        checkpoint.restore(tmp_path)
    assert checkpoint["params"] is live
    np.testing.assert_array_equal(other.kernel[...], kernel)


def test_what_the_new_run_sets_is_kept(tmp_path: Path) -> None:
    def make(rate: float) -> Any:
        params = {"w": jnp.ones(2)}
        return {"params": params, "opt_state": optax.inject_hyperparams(optax.adam)(learning_rate=rate).init(params)}

    first = safepoint.Checkpoint(**make(0.1))
    with safepoint.CheckpointManager(first, tmp_path) as manager:
        manager.save(0, **make(0.1))
    second = safepoint.Checkpoint(**make(0.5))
    safepoint.CheckpointManager(second, tmp_path).resume(keep_live=["opt_state.learning_rate"])
    assert second["opt_state"].hyperparams["learning_rate"] == 0.5
    third = safepoint.Checkpoint(**make(0.5))
    safepoint.CheckpointManager(third, tmp_path).resume()
    assert third["opt_state"].hyperparams["learning_rate"] == jnp.float32(0.1)


def test_what_the_snapshot_lacks_stays_as_it_is_where_that_is_allowed(tmp_path: Path) -> None:
    safepoint.Checkpoint(tree={"w": jnp.ones(2)}).save(tmp_path, tree={"w": jnp.ones(2)})
    live = {"w": jnp.zeros(2), "new": {"key": jax.random.key(3)}}
    checkpoint = safepoint.Checkpoint(tree=live)
    checkpoint.restore(tmp_path, optional=["tree/new/*"])
    assert checkpoint["tree"]["new"] is live["new"]
    assert same(checkpoint["tree"]["w"], jnp.ones(2))


def test_abstract_templates_take_arrays_and_keys(tmp_path: Path) -> None:
    def make() -> Any:
        return {"w": jnp.ones((2, 3), jnp.bfloat16), "key": jax.random.key(3, impl="rbg"), "n": jnp.int32(4)}

    value = make()
    safepoint.Checkpoint(tree=value).save(tmp_path, tree=value)
    checkpoint = safepoint.Checkpoint(tree=jax.eval_shape(make))
    checkpoint.restore(tmp_path)
    assert same(checkpoint["tree"], value)


ALONE = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flax", "optax", "equinox", "chex", "torch", "tensorflow", "keras"}:
            raise ImportError(name + " was asked for")
sys.meta_path.insert(0, Blocked())
import jax, jax.numpy as jnp, safepoint
params, key = {"w": jnp.ones(3), "layers": [jnp.zeros(2)]}, jax.random.key(0)
checkpoint = safepoint.Checkpoint(params=params, key=key)
manager = safepoint.CheckpointManager(checkpoint, sys.argv[1])
for step in manager.steps(3):
    manager.save(params=jax.tree.map(lambda x: x + 1, checkpoint["params"]), key=jax.random.split(checkpoint["key"])[0])
manager.close()
assert safepoint.CheckpointManager(safepoint.Checkpoint(params=params, key=key), sys.argv[1]).resume() == 3
"""


def test_jax_alone_is_enough(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
