"""Train on digits with TensorFlow, a custom loop. Kill it at any moment and run it again: it ends with the same bits.

python keras_loop.py [STEPS]
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import safepoint


def main(steps: int = 300, run: str = "runs/keras-loop", every: int = 10) -> None:
    """Train for `steps` steps in all, over however many processes."""
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()  # else sums depend on the order in which threads finish
    digits = load_digits()
    data = tf.data.Dataset.from_tensor_slices((digits.images.astype("float32") / 16, digits.target))
    batches = iter(data.shuffle(len(digits.target), seed=0).batch(64, drop_remainder=True).repeat())

    dense, relu, dropout = keras.layers.Dense, keras.layers.ReLU, keras.layers.Dropout
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), dense(128), relu(), dropout(0.3), dense(10)])
    optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps))
    history = {"loss": np.zeros(steps)}

    @tf.function
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    # The iterator is tracked too: its state holds the position and what is in the shuffle buffer.
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer, batches=batches, history=history)
    with safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(every)]) as manager:
        for step in manager.steps(steps):
            loss = history["loss"][step] = float(train_step(*next(batches)))
            manager.save(metrics={"loss": loss})
    print(f"loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.3f} in {steps} steps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
