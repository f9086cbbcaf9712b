"""Train a digit classifier with Keras. Killed at any moment and started again, it goes on exactly where it was.

    python keras_train.py RUN [MODEL]

RUN is the folder to checkpoint into; MODEL is the file that the finished model is saved to.
"""

from __future__ import annotations

import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from digits import held_out, training

import safepoint

SEED, EPOCHS, BATCH_SIZE = 7, 12, 32


def tell(**event: object) -> None:
    """What `safepoint demo` draws its progress bars from."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main(run: str, model_file: str | None = None) -> None:
    """Train, or go on training."""
    # Equal seeds make two processes begin alike; deterministic operations make them stay alike: without them,
    # TensorFlow's threads add numbers up in whatever order they come.
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()

    images, labels = training()
    steps_per_epoch = len(images) // BATCH_SIZE
    steps = EPOCHS * steps_per_epoch
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    history = {"loss": np.zeros(steps)}

    checkpoint = safepoint.Checkpoint(model=model, history=history)
    config = {"seed": SEED, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
    manager = safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(25)], config=config)

    for step in manager.steps(steps):
        epoch, position = divmod(step, steps_per_epoch)
        order = np.random.default_rng([SEED, epoch]).permutation(len(images))  # the same in every process
        batch = order[position * BATCH_SIZE : (position + 1) * BATCH_SIZE]
        model.reset_metrics()  # else train_on_batch returns the mean of all batches since the process began
        loss = float(model.train_on_batch(images[batch], labels[batch]))
        history["loss"][step] = loss

        started = time.perf_counter()
        saved = manager.save(metrics={"loss": loss})
        stall = time.perf_counter() - started
        tell(step=step, steps=steps, per_epoch=steps_per_epoch, loss=loss, stall=stall if saved else 0)
    manager.close()

    if model_file is not None:
        safepoint.save_model(model, model_file)
        predictions = np.asarray(model(held_out()[0]))
        tell(predictions=predictions.tobytes().hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
