"""Train on digits with `model.fit`. Kill it at any moment and run it again: it ends with the same bits.

python keras_fit.py [EPOCHS]
"""

import sys

import keras
from sklearn.datasets import load_digits

import safepoint


def main(epochs: int = 10, run: str = "runs/keras-fit") -> None:
    """Train for `epochs` epochs in all, over however many processes."""
    keras.utils.set_random_seed(0)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()  # else sums depend on the order in which threads finish
    digits = load_digits()
    dense, relu, dropout = keras.layers.Dense, keras.layers.ReLU, keras.layers.Dropout
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), dense(128), relu(), dropout(0.3), dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, metrics=["accuracy"])

    # One line more than without safepoint. It resumes by itself.
    safe = safepoint.KerasCheckpoint(run, monitor="val_loss")
    model.fit(digits.images / 16, digits.target, epochs=epochs, validation_split=0.2, verbose=2, callbacks=[safe])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
