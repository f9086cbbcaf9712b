"""The ways to keep a state that `bench_reliability.py` compares: each as a save, a load, perhaps a history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

State = dict[str, np.ndarray]
History = tuple[Callable[[Path, int, State], object], Callable[[Path], State]]


@dataclass(frozen=True)
class Format:
    """One way to keep a state.

    Attributes:
        name: of it.
        package: whose version is told.
        save: writes a state to a path that may exist.
        load: reads it back.
        forks: whether it may be used in a forked process, which is where saves are killed.
        history: saves a state as a step beside others, and goes on from the newest, by the library's own manager.
    """

    name: str
    package: str
    save: Callable[[Path, State], object]
    load: Callable[[Path], State]
    forks: bool = True
    history: History | None = None


def state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((40, 60)).astype(np.float32) for name in ("a", "b", "c")}


def formats() -> Iterator[Format]:
    """All that are installed."""
    yield _safepoint()
    for one in (_safetensors, _torch, _distributed, _hdf5, _npz, _keras, _tensorflow, _orbax):
        with contextlib.suppress(ImportError):
            yield one()


def _safepoint() -> Format:
    import safepoint

    def restore(path: Path) -> State:
        live = {name: np.zeros_like(value) for name, value in state(0).items()}
        safepoint.Checkpoint(state=live).restore(path)
        return live

    def add(path: Path, step: int, one: State) -> None:
        safepoint.Checkpoint(state=dict(one)).save(path, step=step)

    def resume(path: Path) -> State:
        live = {name: np.zeros_like(value) for name, value in state(0).items()}
        with safepoint.CheckpointManager(safepoint.Checkpoint(state=live), path, keep=[], random=False) as manager:
            manager.resume()
        return live

    def save(path: Path, one: State) -> None:
        safepoint.Checkpoint(state=dict(one)).save(path)

    return Format("safepoint repository", "safepoint", save, restore, history=(add, resume))


def _safetensors() -> Format:
    import safetensors.numpy as st

    return Format("safetensors", "safetensors", lambda path, s: st.save_file(s, path), st.load_file)


def _torch() -> Format:
    import torch

    def load(path: Path) -> State:
        return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}

    return Format(
        "torch.save", "torch", lambda p, s: torch.save({n: torch.from_numpy(x) for n, x in s.items()}, p), load
    )


def _distributed() -> Format:
    import torch
    import torch.distributed.checkpoint as dcp

    def save(path: Path, one: State) -> None:
        dcp.save({name: torch.from_numpy(x) for name, x in one.items()}, checkpoint_id=path, no_dist=True)

    def load(path: Path) -> State:
        live = {name: torch.zeros(x.shape) for name, x in state(0).items()}
        try:
            dcp.load(live, checkpoint_id=path, no_dist=True)
        except BaseException as error:  # its own are no `Exception`s
            raise RuntimeError("not loaded") from error
        return {name: tensor.numpy() for name, tensor in live.items()}

    return Format("PyTorch DCP", "torch", save, load, forks=False)


def _hdf5() -> Format:
    import h5py

    def save(path: Path, one: State) -> None:
        with h5py.File(path, "w") as file:
            for name, value in one.items():
                file[name] = value

    def load(path: Path) -> State:
        with h5py.File(path) as file:
            return {name: file[name][()] for name in state(0)}

    return Format("HDF5", "h5py", save, load)


def _npz() -> Format:
    def save(path: Path, one: State) -> None:
        with path.open("wb") as file:
            np.savez(file, **one)

    return Format("npz", "numpy", save, lambda path: dict(np.load(path)))


def _keras() -> Format:
    import keras

    def save(path: Path, one: State) -> None:
        x = keras.Input((40,))
        model = keras.Model(x, [keras.layers.Dense(60, use_bias=False, name=name)(x) for name in one])
        model.set_weights(list(one.values()))
        path.mkdir(exist_ok=True)
        model.save(path / "x.keras")

    def load(path: Path) -> State:
        model = keras.saving.load_model(path / "x.keras")
        return {name: model.get_layer(name).get_weights()[0] for name in state(0)}

    return Format("Keras .keras", "keras", save, load, forks=False)


def _tensorflow() -> Format:
    import tensorflow as tf

    def variables(one: State) -> dict[str, Any]:
        return {name: tf.Variable(value) for name, value in one.items()}

    def save(path: Path, one: State) -> None:
        path.mkdir(exist_ok=True)
        tf.train.Checkpoint(**variables(one)).write(str(path / "ck"))

    def read(live: dict[str, Any], prefix: str) -> State:
        tf.train.Checkpoint(**live).read(prefix).assert_existing_objects_matched().expect_partial()
        return {name: value.numpy() for name, value in live.items()}

    def add(path: Path, step: int, one: State) -> None:
        tf.train.CheckpointManager(tf.train.Checkpoint(**variables(one)), str(path), 5).save(step)

    def resume(path: Path) -> State:
        live = variables({name: np.zeros_like(x) for name, x in state(0).items()})
        tf.train.CheckpointManager(tf.train.Checkpoint(**live), str(path), 5).restore_or_initialize()
        return {name: value.numpy() for name, value in live.items()}

    zeros = {name: np.zeros_like(x) for name, x in state(0).items()}
    return Format(
        "tf.train.Checkpoint",
        "tensorflow-cpu",
        save,
        lambda path: read(variables(zeros), str(path / "ck")),
        forks=False,
        history=(add, resume),
    )


def _orbax() -> Format:
    import orbax.checkpoint as ocp

    def save(path: Path, one: State) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, one, force=True)

    def load(path: Path) -> State:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(path, state(0))
        return {name: np.asarray(value) for name, value in found.items()}

    def add(path: Path, step: int, one: State) -> None:
        with ocp.CheckpointManager(path) as manager:
            manager.save(step, args=ocp.args.StandardSave(one))

    def resume(path: Path) -> State:
        with ocp.CheckpointManager(path) as manager:
            found = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state(0)))
        return {name: np.asarray(value) for name, value in found.items()}

    return Format("Orbax", "orbax-checkpoint", save, load, forks=False, history=(add, resume))
