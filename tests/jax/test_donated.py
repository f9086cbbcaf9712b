"""`donated=False`: JAX arrays are held instead of copied, and one that is donated all the same is never committed."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import safepoint
from safepoint.api.staging import Staging
from safepoint.repository import Repository


@pytest.fixture
def gate(monkeypatch):
    """Holds commits back until it is opened."""
    opened = threading.Event()
    real = Repository.commit

    def commit(*arguments, **options):
        opened.wait(10)
        return real(*arguments, **options)

    monkeypatch.setattr(Repository, "commit", commit)
    return opened


def test_arrays_are_held_and_the_snapshot_is_of_the_moment_of_the_save(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(
        Staging,
        "_make_room",
        lambda _, num_bytes: (_ for _ in ()).throw(AssertionError(num_bytes)) if num_bytes > 1 << 16 else None,
    )
    params = {"w": jnp.arange(1 << 18, dtype=jnp.float32)}
    manager = safepoint.CheckpointManager(
        safepoint.Checkpoint(params=params), tmp_path / "run", donated=False, random=False
    )
    handle = manager.save(params=params)
    later = jax.jit(lambda p: jax.tree.map(lambda x: x * 2, p))(params)
    gate.set()
    handle.result()
    manager.close()
    checkpoint = safepoint.Checkpoint(params=jax.tree.map(jnp.zeros_like, later))
    checkpoint.restore(tmp_path / "run")
    np.testing.assert_array_equal(checkpoint["params"]["w"], np.arange(1 << 18, dtype=np.float32))


def test_an_array_that_is_donated_all_the_same_fails_its_save(tmp_path, gate):
    params = {"w": jnp.arange(1 << 18, dtype=jnp.float32)}
    manager = safepoint.CheckpointManager(safepoint.Checkpoint(params=params), tmp_path / "run", donated=False)
    handle = manager.save(params=params)
    jax.jit(lambda p: jax.tree.map(lambda x: x * 2, p), donate_argnums=0)(params)
    gate.set()
    with pytest.raises(safepoint.UnsupportedError, match="donated or deleted"):
        handle.result()
    assert not safepoint.Repository(tmp_path / "run").snapshots
