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
        hold: a state as the live object that the library saves and loads.
        save: writes a live object to a path that may exist.
        load: reads it back into a live object, or gives what it read where the library only does that.
        values: what a live object, or what `load` gave, holds.
        fills: whether `load` is told what to fill, so that it can see what does not fit.
        forks: whether it may be used in a forked process.
        dear: seconds where others take milliseconds, so that it is tried less often.
        history: saves a state as a step beside others, and goes on from the newest, by the library's own manager.
    """

    name: str
    package: str
    hold: Callable[[State], Any]
    save: Callable[[Path, Any], object]
    load: Callable[[Path, Any], Any]
    values: Callable[[Any], State] = dict
    fills: bool = True
    forks: bool = True
    dear: bool = False
    history: History | None = None


def state(seed: int, columns: int = 60) -> State:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((40, columns), dtype=np.float32) for name in ("alpha", "beta", "gamma")}


def zeros(like: State) -> State:
    return {name: np.zeros_like(value) for name, value in like.items()}


def formats() -> Iterator[Format]:
    """All that are installed."""
    yield _safepoint()
    for one in (_safetensors, _torch, _distributed, _hdf5, _npz, _keras, _keras_weights, _tensorflow, _orbax):
        with contextlib.suppress(ImportError):
            yield one()


def _safepoint() -> Format:
    import safepoint

    def save(path: Path, live: State) -> None:
        safepoint.Checkpoint(state=live).save(path)

    def load(path: Path, live: State) -> State:
        safepoint.Checkpoint(state=live).restore(path)
        return live

    def add(path: Path, step: int, one: State) -> None:
        safepoint.Checkpoint(state=dict(one)).save(path, step=step)

    def resume(path: Path) -> State:
        live = zeros(state(0))
        with safepoint.CheckpointManager(safepoint.Checkpoint(state=live), path, keep=[], random=False) as manager:
            manager.resume()
        return live

    return Format("safepoint repository", "safepoint", dict, save, load, history=(add, resume))


def _module(one: State) -> Any:
    import torch

    module = torch.nn.Module()
    for name, value in one.items():
        module.register_buffer(name, torch.from_numpy(value))
    return module


def _arrays(module: Any) -> State:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _safetensors() -> Format:
    from safetensors.torch import load_model, save_model

    def load(path: Path, live: Any) -> Any:
        load_model(live, path)
        return live

    return Format("safetensors", "safetensors", _module, lambda path, live: save_model(live, str(path)), load, _arrays)


def _torch() -> Format:
    import torch

    def load(path: Path, live: Any) -> Any:
        live.load_state_dict(torch.load(path, weights_only=True))
        return live

    return Format("torch.save", "torch", _module, lambda path, live: torch.save(live.state_dict(), path), load, _arrays)


def _distributed() -> Format:
    import torch.distributed.checkpoint as dcp

    def save(path: Path, live: Any) -> None:
        dcp.save(live.state_dict(), checkpoint_id=path, no_dist=True)

    def load(path: Path, live: Any) -> Any:
        try:
            dcp.load(live.state_dict(), checkpoint_id=path, no_dist=True)
        except BaseException as error:  # its own are no `Exception`s
            raise RuntimeError(str(error)) from error
        return live

    return Format("PyTorch DCP", "torch", _module, save, load, _arrays, forks=False)


def _hdf5() -> Format:
    import h5py

    def save(path: Path, live: State) -> None:
        with h5py.File(path, "w") as file:
            for name, value in live.items():
                file[name] = value

    def load(path: Path, _: State) -> State:
        with h5py.File(path) as file:
            return {name: file[name][()] for name in file}

    return Format("HDF5", "h5py", dict, save, load, fills=False)


def _npz() -> Format:
    def save(path: Path, live: State) -> None:
        with path.open("wb") as file:
            np.savez(file, **live)

    return Format("npz", "numpy", dict, save, lambda path, _: dict(np.load(path)), fills=False)


def _network(one: State) -> Any:
    import keras

    x = keras.Input((len(next(iter(one.values()))),))
    layers = [keras.layers.Dense(value.shape[1], use_bias=False, name=name) for name, value in one.items()]
    model = keras.Model(x, [layer(x) for layer in layers])
    model.set_weights(list(one.values()))
    return model


def _weights(model: Any) -> State:
    return {layer.name: layer.get_weights()[0] for layer in model.layers if layer.weights}


def _keras() -> Format:
    import keras

    def save(path: Path, live: Any) -> None:
        path.mkdir(exist_ok=True)
        live.save(path / "x.keras")

    def load(path: Path, _: Any) -> Any:
        return keras.saving.load_model(path / "x.keras")

    return Format("Keras .keras", "keras", _network, save, load, _weights, fills=False, forks=False, dear=True)


def _keras_weights() -> Format:
    import keras  # noqa: F401 — whether it is there

    def save(path: Path, live: Any) -> None:
        path.mkdir(exist_ok=True)
        live.save_weights(path / "x.weights.h5")

    def load(path: Path, live: Any) -> Any:
        live.load_weights(path / "x.weights.h5")
        return live

    return Format("Keras .weights.h5", "keras", _network, save, load, _weights, forks=False, dear=True)


def _tensorflow() -> Format:
    import tensorflow as tf

    def hold(one: State) -> dict[str, Any]:
        return {name: tf.Variable(value) for name, value in one.items()}

    def values(live: dict[str, Any]) -> State:
        return {name: value.numpy() for name, value in live.items()}

    def save(path: Path, live: dict[str, Any]) -> None:
        path.mkdir(exist_ok=True)
        tf.train.Checkpoint(**live).write(str(path / "ck"))

    def load(path: Path, live: dict[str, Any]) -> dict[str, Any]:
        tf.train.Checkpoint(**live).read(str(path / "ck"))
        return live

    def add(path: Path, step: int, one: State) -> None:
        tf.train.CheckpointManager(tf.train.Checkpoint(**hold(one)), str(path), 5).save(step)

    def resume(path: Path) -> State:
        live = hold(zeros(state(0)))
        tf.train.CheckpointManager(tf.train.Checkpoint(**live), str(path), 5).restore_or_initialize()
        return values(live)

    return Format(
        "tf.train.Checkpoint", "tensorflow-cpu", hold, save, load, values, forks=False, dear=True, history=(add, resume)
    )


def _orbax() -> Format:
    import jax
    import orbax.checkpoint as ocp

    def hold(one: State) -> dict[str, Any]:
        return {name: jax.device_put(value) for name, value in one.items()}

    def values(live: dict[str, Any]) -> State:
        return {name: np.asarray(value) for name, value in live.items()}

    def save(path: Path, live: dict[str, Any]) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, live, force=True)

    def load(path: Path, live: dict[str, Any]) -> dict[str, Any]:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, live)

    def add(path: Path, step: int, one: State) -> None:
        with ocp.CheckpointManager(path) as manager:
            manager.save(step, args=ocp.args.StandardSave(hold(one)))

    def resume(path: Path) -> State:
        with ocp.CheckpointManager(path) as manager:
            return values(manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(hold(zeros(state(0))))))

    return Format("Orbax", "orbax-checkpoint", hold, save, load, values, forks=False, dear=True, history=(add, resume))
