"""Train on digits with Flax NNX. Kill it at any moment and run it again: it goes on, and ends with the same bits.

python flax_nnx.py [STEPS]
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import safepoint


class Network(nnx.Module):
    """Convolution, batch statistics, dropout: all that a resumed run must find as it was."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8 * 64, 10, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.conv(images[..., None])))
        return self.out(self.dropout(hidden.reshape(len(images), -1)))


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One step, in place: parameters, batch statistics, dropout keys, moments."""

    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def main(steps: int = 300, run: str = "runs/flax-nnx", every: int = 10) -> None:
    """Train for `steps` steps in all, over however many processes."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images / 16, jnp.float32), jnp.asarray(digits.target)
    model = Network(nnx.Rngs(0, dropout=1))
    optimizer = nnx.Optimizer(model, optax.adamw(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(0)  # the order of data: tracked like everything else
    history = {"loss": np.zeros(steps)}

    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer, rng=rng, history=history)
    with safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(every)]) as manager:
        for step in manager.steps(steps):
            batch = rng.choice(len(images), 64, replace=False)
            loss = history["loss"][step] = train_step(model, optimizer, images[batch], labels[batch])
            manager.save(metrics={"loss": loss})
    print(f"loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.3f} in {steps} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
