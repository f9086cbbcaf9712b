"""Run by test_sharding.py in a process of its own, with two CPU devices: saves and restores sharded trees."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import safepoint

path = Path(sys.argv[1])
assert jax.device_count() == 2
mesh = Mesh(np.array(jax.devices()), ("d",))
split, replicated = NamedSharding(mesh, PartitionSpec("d")), NamedSharding(mesh, PartitionSpec())
other = SingleDeviceSharding(jax.devices()[1])
content = {"split": jnp.arange(8.0).reshape(4, 2), "replicated": jnp.arange(3), "key": jax.random.key(3)}
value = {
    "split": jax.device_put(content["split"], split),
    "replicated": jax.device_put(content["replicated"], replicated),
    "key": jax.device_put(content["key"], other),
}
safepoint.Checkpoint(tree=value).save(path, tree=value)
assert all(array._npy_value is None for name, array in value.items() if name != "key")  # no copy stays behind

live = {
    "split": jax.device_put(jnp.zeros((4, 2)), split),
    "replicated": jax.device_put(jnp.zeros(3, jnp.int32), other),
    "key": jax.device_put(jax.random.key(0), replicated),
}
abstract = {"split": jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "d")))}
for template in (live, live | abstract):
    checkpoint = safepoint.Checkpoint(tree=template)
    checkpoint.restore(path)
    restored = checkpoint["tree"]
    for name, wanted in content.items():
        assert restored[name].sharding == template[name].sharding, name
        one, two = restored[name], wanted
        if name == "key":
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        np.testing.assert_array_equal(one, two)

# A step that donates sharded buffers, saved in the background.
step = jax.jit(lambda tree: {"split": tree["split"] + 1, "replicated": tree["replicated"] * 0}, donate_argnums=0)
tree = {name: value[name] for name in ("split", "replicated")}
checkpoint = safepoint.Checkpoint(tree=tree)
with safepoint.CheckpointManager(checkpoint, path / "donated") as manager:
    for _ in manager.steps(3):
        tree = step(tree)
        manager.save(tree=tree)
fresh = safepoint.Checkpoint(tree={name: live[name] for name in tree})
assert safepoint.CheckpointManager(fresh, path / "donated").resume() == 3
np.testing.assert_array_equal(fresh["tree"]["split"], content["split"] + 3)
