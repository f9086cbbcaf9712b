"""Train on digits with JAX and Optax. Kill it at any moment and run it again: it goes on, and ends with the same bits.

python jax_optax.py [STEPS]
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import safepoint


def logits(params, images, key=None):
    """Two layers; with a key, dropout between them."""
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.7, hidden.shape), hidden / 0.7, 0)
    return hidden @ params["out"]["w"] + params["out"]["b"]


@partial(jax.jit, static_argnums=0, donate_argnums=1)  # the old state's memory becomes the new one's
def train_step(optimizer, state, images, labels):
    """One step of everything: keys are split, parameters and their average move."""
    batch_key, dropout_key, key = jax.random.split(state["key"], 3)
    batch = jax.random.choice(batch_key, len(images), (64,), replace=False)

    def loss_of(params):
        scores = logits(params, images[batch], dropout_key)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels[batch]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = optax.incremental_update(params, state["ema"], 0.01)
    return {"params": params, "ema": ema, "opt_state": opt_state, "key": key}, loss


def main(steps: int = 300, run: str = "runs/jax-optax", every: int = 10) -> None:
    """Train for `steps` steps in all, over however many processes."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    init, key = jax.nn.initializers.he_normal(), jax.random.key(0)
    sizes = {"hidden": (64, 128), "out": (128, 10)}
    params = {
        name: {"w": init(jax.random.fold_in(key, n), (n, m)), "b": jnp.zeros(m)} for name, (n, m) in sizes.items()
    }
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))
    ema = jax.tree.map(jnp.copy, params)

    # JAX arrays do not change: each save is given the new values, and a restore puts them into the checkpoint.
    state = {"params": params, "ema": ema, "opt_state": optimizer.init(params), "key": key}
    history = {"loss": np.zeros(steps)}
    checkpoint = safepoint.Checkpoint(**state, history=history)
    with safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(every)]) as manager:
        for step in manager.steps(steps):
            state, loss = train_step(optimizer, {name: checkpoint[name] for name in state}, images, labels)
            history["loss"][step] = loss
            manager.save(metrics={"loss": loss}, **state)
    print(f"loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.3f} in {steps} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
