"""Train on digits with Equinox. Kill it at any moment and run it again: it goes on, and ends with the same bits.

python equinox_loop.py [STEPS]
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import safepoint


def main(steps: int = 300, run: str = "runs/equinox", every: int = 10) -> None:
    """Train for `steps` steps in all, over however many processes."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    @eqx.filter_jit(donate="all-except-first")
    def train_step(data, state):
        batch_key, dropout_key, key = jax.random.split(state["key"], 3)
        batch = jax.random.choice(batch_key, len(data[0]), (64,), replace=False)

        def loss_of(model):
            scores = jax.vmap(lambda image, key: model(image, key=key))(
                data[0][batch], jax.random.split(dropout_key, 64)
            )
            return optax.softmax_cross_entropy_with_integer_labels(scores, data[1][batch]).mean()

        loss, gradients = eqx.filter_value_and_grad(loss_of)(state["model"])
        weights = eqx.filter(state["model"], eqx.is_array)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], weights)
        return {"model": eqx.apply_updates(state["model"], updates), "opt_state": opt_state, "key": key}, loss

    # Modules do not change: each save is given the new ones, and a restore puts them into the checkpoint.
    layers = eqx.nn.Linear(64, 128, key=jax.random.key(1)), eqx.nn.Linear(128, 10, key=jax.random.key(2))
    model = eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.3), layers[1]])
    state = {"model": model, "opt_state": optimizer.init(eqx.filter(model, eqx.is_array)), "key": jax.random.key(3)}
    history = {"loss": np.zeros(steps)}
    checkpoint = safepoint.Checkpoint(**state, history=history)
    with safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(every)]) as manager:
        for step in manager.steps(steps):
            state, loss = train_step((images, labels), {name: checkpoint[name] for name in state})
            history["loss"][step] = loss
            manager.save(metrics={"loss": loss}, **state)
    print(f"loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.3f} in {steps} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
