"""Every way to a JAX model or its state, under the audit hook: see `tests/audit.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from tests.attacks.watching import loads_safely
from tests.jax_models import models

import safepoint


def graphs(kind: str, path: Path) -> dict[str, Any]:
    if kind == "nnx":
        safepoint.save_model(models.transformer(), path, example_inputs=(jnp.ones((3, 5), jnp.int32),))
    elif kind == "equinox":
        safepoint.save_model(models.mlp(), path, example_inputs=(jnp.ones(4),))
    else:
        safepoint.save_model(models.predict, path, params=models.pytree(), example_inputs=(jnp.ones((3, 4)),))
    return {"form": "graph"} if kind == "equinox" else {}


@pytest.mark.parametrize("kind", ["nnx", "equinox", "function"])
def test_a_graph(kind: str, tmp_path: Path) -> None:
    options = graphs(kind, tmp_path / "model")
    loads_safely(tmp_path, lambda: safepoint.load_model(tmp_path / "model", **options))


def test_a_class(tmp_path: Path) -> None:
    safepoint.save_model(models.mlp(), tmp_path / "model", example_inputs=(jnp.ones(4),))
    loads_safely(tmp_path, lambda: safepoint.load_model(tmp_path / "model"))


def test_restore_and_resume(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(params=models.pytree())
    checkpoint.save(tmp_path / "run", params=models.pytree())

    def resume() -> int:
        with safepoint.CheckpointManager(checkpoint, tmp_path / "run", keep=[]) as manager:
            return manager.resume()

    loads_safely(tmp_path, lambda: checkpoint.restore(tmp_path / "run"))
    loads_safely(tmp_path, resume)
