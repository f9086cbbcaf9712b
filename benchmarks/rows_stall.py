"""Rows of memory: how long training stands still for a background save."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import Row
from state import adamw, gpt2, seconds

import safepoint
from safepoint.cli.machine import memcpy


def torch_stall(root: Path, rounds: int, blocks: int) -> list[Row]:
    """The stall of each save of a PyTorch run beside one memcpy of the same arrays, in turn."""
    model = gpt2(blocks=blocks)
    optimizer = adamw(model)
    arrays = _arrays(model, optimizer)
    manager = _manager(safepoint.Checkpoint(model=model, optimizer=optimizer), root)
    manager.resume(fresh=True)
    _train(3.0)  # a first step, beside which memory is touched
    stalls, copies = _measure(manager, arrays, rounds, lambda: None)
    return [
        Row("stall of a background save, PyTorch", stalls[1:], copies, 1.2, note="one memcpy"),
        Row("first background save of a run", stalls[:1], stalls[1:], 1.5, note="the later ones"),
    ]


def overlap(root: Path, rounds: int, blocks: int) -> list[Row]:
    """`overlap=True`: when `save` returns, and what `step` then waits."""
    import torch

    model = gpt2(blocks=blocks)
    optimizer = adamw(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    arrays = _arrays(model, optimizer)
    targets = [np.zeros_like(array) for array in arrays]
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer)
    manager = safepoint.CheckpointManager(checkpoint, root / "run", keep=[safepoint.Latest(1)], overlap=True)
    returns: list[float] = []
    waits: dict[bool, list[float]] = {True: [], False: []}
    copies = []
    for number in range(2 + 2 * rounds):  # the first two copy at once
        between = bool(number % 2)
        copies.append(seconds(lambda: memcpy(arrays, targets)))
        started = time.perf_counter()
        handle = manager.save()
        taken = time.perf_counter() - started
        if between:
            _train(1.0)
        waited = seconds(handle.staged)  # what the step's own hook waits for
        optimizer.step()
        handle.result()
        if number >= 2:
            returns.append(taken * 1e3)
            waits[between].append(waited if between else taken + waited)
    manager.close()
    return [
        Row("save returns, overlap=True", returns, goal=10, unit="ms"),
        Row("step then waits, a pass lies between", waits[True], copies, 0.3, note="one memcpy"),
        Row("save and step stand still together, nothing between", waits[False], copies, 1.2, note="one memcpy"),
    ]


def keras_stall(root: Path, rounds: int, blocks: int) -> list[Row]:
    """The same for a Keras model on TensorFlow."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    width = 768
    units = 4 * width
    layers = [keras.layers.Dense(units if i % 2 == 0 else width) for i in range(2 * blocks)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    arrays = [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]
    manager = _manager(safepoint.Checkpoint(model=model), root)
    stalls, copies = _measure(manager, arrays, rounds, lambda: None)
    return [
        Row(
            f"stall of a background save, Keras on {keras.backend.backend()}",
            stalls[1:],
            copies,
            1.3,
            note="one memcpy",
        )
    ]


def jax_stall(root: Path, rounds: int, blocks: int) -> list[Row]:
    """The same for a pytree of JAX arrays; and held instead of copied, with `donated=False`."""
    import jax

    arrays = _arrays(model := gpt2(blocks=blocks), adamw(model))
    params = {f"p{i}": jax.numpy.array(array) for i, array in enumerate(arrays)}
    manager = _manager(safepoint.Checkpoint(params=params), root)
    stalls, copies = _measure(manager, arrays, rounds, lambda: None, params=params)
    held = _manager(safepoint.Checkpoint(params=params), root / "held", donated=False)
    references, _ = _measure(held, arrays[:1], rounds, lambda: None, params=params)
    return [
        Row("stall of a background save, JAX", stalls[1:], copies, 1.3, note="one memcpy"),
        Row("save returns, donated=False", [s * 1e3 for s in references[1:]], goal=10, unit="ms"),
    ]


def _manager(checkpoint: Any, root: Path, **options: Any) -> Any:
    return safepoint.CheckpointManager(checkpoint, root / "run", keep=[safepoint.Latest(1)], **options)


def _measure(
    manager: Any, arrays: list[np.ndarray], rounds: int, change: Any, **values: Any
) -> tuple[list[float], list[float]]:
    targets = [np.zeros_like(array) for array in arrays]
    stalls, copies = [], []
    for _ in range(rounds + 1):
        copies.append(seconds(lambda: memcpy(arrays, targets)))
        change()
        started = time.perf_counter()
        manager.save(**values)
        stalls.append(time.perf_counter() - started)
        manager.wait()
        os.sync()
    manager.close()
    return stalls, copies


def _train(duration: float) -> None:
    """What a forward and backward pass does to one core."""
    ones = np.ones((512, 512), np.float32)
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        ones @ ones


def _arrays(model: Any, optimizer: Any) -> list[np.ndarray]:
    state = [value for slots in optimizer.state.values() for value in slots.values()]
    return [tensor.detach().numpy() for tensor in (*model.parameters(), *state)]
