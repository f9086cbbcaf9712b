"""Runs that are stopped and resumed are, bit for bit, the runs that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tests.jax.comparing import same

import safepoint

STEPS, KILLED = 9, 4
_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, STEPS)))


def initial() -> dict[str, Any]:
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(1), (4, 3)), "bias": jnp.zeros(3)}}
    ema = jax.tree.map(jnp.array, params)  # not the same buffers: both are donated
    return {"params": params, "ema": ema, "opt_state": _OPTIMIZER.init(params), "key": jax.random.key(7)}


def _step(state: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    key, dropout, data = jax.random.split(state["key"], 3)
    x = jax.random.normal(data, (8, 4))

    def loss_of(params: Any) -> Any:
        kept = jax.random.bernoulli(dropout, 0.8, x.shape)
        return jnp.mean((jnp.where(kept, x, 0) @ params["dense"]["kernel"] + params["dense"]["bias"] - 1) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = _OPTIMIZER.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = optax.incremental_update(params, state["ema"], 0.1)
    return {"params": params, "ema": ema, "opt_state": opt_state, "key": key}, loss


step = jax.jit(_step, donate_argnums=0)


def test_optax_with_an_average_keys_and_donated_buffers_resumes_exactly(tmp_path: Path) -> None:
    state, losses = initial(), []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)

    def run(until: int) -> tuple[dict[str, Any], list[Any]]:
        """As a process would: from new objects, going on where the last one stopped."""
        checkpoint = safepoint.Checkpoint(**initial())
        seen = []
        with safepoint.CheckpointManager(checkpoint, tmp_path) as manager:
            for number in manager.steps(STEPS):
                if number == until:
                    break
                new, loss = step(dict(checkpoint.objects))
                manager.save(metrics={"loss": loss}, **new)
                seen.append(loss)
        return dict(checkpoint.objects), seen

    _, before = run(KILLED)
    resumed, after = run(STEPS)
    assert len(before) == KILLED
    assert same(resumed, state)
    assert same([*before, *after], losses)
