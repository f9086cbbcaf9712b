"""Runs `fit` in forked children of one process that has imported Keras on the backend of its environment.

Reads one JSON request a line: {"data", "repository" (null: without safepoint), "kill_at" (null: to the end),
"first" (whether the checkpoint comes before the other callbacks), "out"}.
Answers each with the child's exit code on a line.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import keras
import numpy as np

import safepoint

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch
else:
    import tensorflow as tf
if BACKEND == "jax":
    import jax

EPOCHS = 4
RNG = np.random.default_rng(0)
X, Y = RNG.random((44, 6), dtype="float32"), RNG.integers(0, 2, 44).astype("float32")


class Recorder(keras.callbacks.Callback):
    """What other callbacks see; a plain list, which is state. Kills itself after a number of batches."""

    def __init__(self, kill_at):
        super().__init__()
        self.kill_at = kill_at
        self.seen = []
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        np.random.random()  # as a user's might: the random state of the interrupted epoch must not be drawn on twice

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((self.epoch, batch, logs["loss"], logs["mae"]))
        if self.kill_at is not None and len(self.seen) >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Shuffled(keras.utils.PyDataset):
    """Batches in an order that changes with each epoch, kept in the object and drawn from a global generator."""

    def __init__(self):
        super().__init__()
        self.order = np.arange(len(X))

    def __len__(self):
        return 11

    def __getitem__(self, index):
        rows = self.order[index * 4 : index * 4 + 4]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


def endless():
    rng = np.random.default_rng(5)
    while True:
        rows = rng.integers(0, len(X), 8)
        yield X[rows], Y[rows]


def data(kind):
    """What is given to `fit` and `compile`, and whether the number of batches between saves is counted."""
    if kind == "arrays":
        return {"x": X, "y": Y, "batch_size": 4, "validation_split": 0.25}, {}, {"save_freq": 1}
    if kind == "arrays in parts":  # an epoch of 5 of the 11 batches; executions of 2
        more = {} if BACKEND == "torch" else {"steps_per_execution": 2}
        fit = {"x": X, "y": Y, "batch_size": 4, "steps_per_epoch": 4, "class_weight": {0: 1.0, 1: 2.5}}
        return {**fit, "validation_data": (X, Y), "validation_freq": 2}, more, {"save": [safepoint.EverySteps(1)]}
    if kind == "dataset object":
        return {"x": Shuffled(), "validation_data": (X, Y)}, {}, {"save_freq": 2}
    if kind == "generator":
        return {"x": endless(), "steps_per_epoch": 5, "validation_data": (X, Y)}, {}, {"save_freq": 1}
    if BACKEND == "torch":
        tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        loader = torch.utils.data.DataLoader(tensors, batch_size=4, shuffle=True)
        return {"x": loader, "validation_data": (X, Y)}, {}, {"save_freq": 1}
    pipeline = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(44, seed=3).batch(4)
    return {"x": pipeline, "validation_data": (X, Y)}, {}, {"save_freq": 1}


def train(request):
    keras.utils.set_random_seed(11)
    fit, compiled, saves = data(request["data"])
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(),
         keras.layers.Dropout(0.4), keras.layers.Dense(1)]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"], **compiled)
    stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True, verbose=0)
    slow = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.05, cooldown=1, factor=0.5)
    recorder, callbacks = Recorder(request["kill_at"]), []
    if request["repository"] is not None:  # first or last: it makes no difference
        callbacks = [safepoint.KerasCheckpoint(request["repository"], "loss", **saves)]
    callbacks = [*callbacks, stop, slow, recorder] if request["first"] else [stop, slow, recorder, *callbacks]
    history = model.fit(**fit, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return {
        "history": history.history,
        "epochs": history.epoch,
        "batches": recorder.seen,
        "weights": [digest(v) for v in model.variables],
        "optimizer": [digest(v) for v in model.optimizer.variables],
        "iterations": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "stop": [stop.best, stop.wait, stop.best_epoch, stop.stopped_epoch, [digest(w) for w in stop.best_weights]],
        "slow": [slow.best, slow.wait, slow.cooldown_counter],
        "random": np.random.random(),
    }


def digest(tensor):
    return hashlib.sha256(np.ascontiguousarray(keras.ops.convert_to_numpy(tensor)).tobytes()).hexdigest()[:16]


def child(request):
    out = Path(request["out"])
    errors = os.open(out.with_suffix(".err"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    out.write_text(json.dumps(train(request)))


def prepare(cache):
    """Do once what every child would do again: imports that torch leaves to its first use, and what JAX compiles."""
    if BACKEND == "jax":
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if BACKEND == "torch":
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        train({"data": "arrays", "repository": None, "kill_at": None, "first": True})


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="os.fork")
    prepare(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            try:
                child(json.loads(line))
            except Exception:  # noqa: BLE001 — a child must never come back into the loop
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        answer.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
