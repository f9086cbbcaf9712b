"""Rows of unusual states: mostly unchanged, many small tensors, a long history, whole models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from results import Row
from state import seconds

import safepoint
from safepoint.cli.machine import sync

_SMALL = 20_000


def frozen_backbone(root: Path, rounds: int, blocks: int) -> list[Row]:
    """A save where 95 % of the bytes did not change."""
    width = 1 << 20
    count = 30 * blocks
    state = {f"layer{i}": np.random.default_rng(i).random(width, np.float32) for i in range(count)}
    changing = [f"layer{i}" for i in range(0, count, 20)]
    checkpoint = safepoint.Checkpoint(state=state)
    full, partial, written = [], [], []
    for number in range(rounds):
        for array in state.values():
            array[0] += 1 + number
            array[-1] += 1 + number
        full.append(seconds(lambda: checkpoint.save(root / "run")))
        for name in changing:
            state[name] += 1
        started = time.perf_counter()
        snapshot = checkpoint.save(root / "run")
        partial.append(time.perf_counter() - started)
        written.append(snapshot.written_bytes / snapshot.num_bytes)
        shutil.rmtree(root / "run")
    return [
        Row("a save where 95 % did not change", partial, full, 0.35, note="a full save"),
        Row("share of the bytes that it writes", written, goal=0.06, unit=""),
    ]


def small_tensors(root: Path, rounds: int, blocks: int) -> list[Row]:
    """20,000 tensors of 1 kB, against safetensors; and what a background save does to a step beside it."""
    del blocks
    from safetensors.numpy import load_file, save_file

    state = {f"t{i}": np.random.default_rng(i).random(256, np.float32) for i in range(_SMALL)}
    checkpoint = safepoint.Checkpoint(state=state)
    file = root / "state.safetensors"
    saves: list[float] = []
    loads: list[float] = []
    peer_saves: list[float] = []
    peer_loads: list[float] = []

    def save_peer() -> None:
        save_file(state, file)
        sync(file)

    def load_peer() -> None:
        for name, array in load_file(file).items():
            state[name][:] = array

    for _ in range(rounds):
        shutil.rmtree(root / "run", ignore_errors=True)
        saves.append(seconds(lambda: checkpoint.save(root / "run")))
        peer_saves.append(seconds(save_peer))
        loads.append(seconds(lambda: checkpoint.restore(root / "run")))
        peer_loads.append(seconds(load_peer))
    return [
        Row("20,000 tensors of 1 kB, save", saves, peer_saves, 2.0, note="safetensors"),
        Row("20,000 tensors of 1 kB, restore", loads, peer_loads, 2.0, note="safetensors"),
        _stretched(root, rounds, checkpoint),
    ]


def _stretched(root: Path, rounds: int, checkpoint: safepoint.Checkpoint) -> Row:
    """A step of pure Python and small arrays, alone and beside a background save."""
    values = np.zeros(256)

    def step() -> None:
        for _ in range(100_000):
            np.add(values, 1, out=values)

    manager = safepoint.CheckpointManager(checkpoint, root / "background", keep=[safepoint.Latest(1)])
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(seconds(step))
        for array in checkpoint["state"].values():
            array[0] += 1
        handle = manager.save()
        while handle is not None and not handle.done:
            beside.append(seconds(step))
    manager.close()
    return Row("a training step beside a background save of them", beside, alone, 1.2, note="the step alone")


def long_history(root: Path, rounds: int, blocks: int) -> list[Row]:
    """A repository of 1,000 snapshots: what looking, resuming and saving take."""
    del blocks
    state = {"weights": np.zeros(1000, np.float32)}
    checkpoint = safepoint.Checkpoint(state=state)
    run = safepoint.Repository(root / "run")
    for step in range(1000):
        state["weights"][0] = step
        checkpoint.save(run, step=step, metrics={"loss": 1.0 / (step + 1)})

    def resume() -> None:
        manager = safepoint.CheckpointManager(checkpoint, root / "run", random=False)
        manager.resume()
        manager.close()

    # As installed: with the bytecode of the sources, which pip compiles and a checkout's first run does.
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def command(*arguments: str) -> float:
        process = [sys.executable, "-m", "safepoint", *arguments]
        return seconds(lambda: subprocess.run(process, capture_output=True, check=True, env=compiled))

    command("log", str(root / "run"))
    log = [command("log", str(root / "run")) for _ in range(rounds)]
    helps = [command("--help") for _ in range(rounds)]
    latest = [seconds(lambda: safepoint.Repository(root / "run").resolve("latest")) for _ in range(rounds)]
    resumed = [seconds(resume) for _ in range(rounds)]
    alone, retained = (_long_and_empty(root / kind, checkpoint, run, 8 * rounds, kind) for kind in ("save", "manager"))
    return [
        Row("1,000 snapshots: safepoint log, whole process", log, goal=0.3, note=f"--help: {median(helps):.2g} s"),
        Row("1,000 snapshots: latest", latest, goal=0.3),
        Row("1,000 snapshots: resume", resumed, goal=0.3),
        Row("1,000 snapshots: a save", *alone, 1.1, note="in an empty one"),
        Row("1,000 snapshots: a manager's save, pruning included", *retained, 1.1, note="in an empty one"),
    ]


def _long_and_empty(
    empty: Path, checkpoint: safepoint.Checkpoint, run: safepoint.Repository, rounds: int, kind: str
) -> tuple[list[float], list[float]]:
    """Seconds of saves into a long history and into a short one, in turn."""
    times: dict[safepoint.Repository, list[float]] = {run: [], safepoint.Repository(empty): []}
    managers = {}
    for repository in times:
        checkpoint.save(repository)
        managers[repository] = safepoint.CheckpointManager(checkpoint, repository, random=False)
        managers[repository].resume()
        managers[repository].save(force=True).result()  # prunes what is there
    for number in range(rounds):
        for repository in list(times)[:: 1 if number % 2 else -1]:  # neither is always first
            found = times[repository]
            checkpoint["state"]["weights"][0] = -1 - number
            if kind == "save":
                found.append(seconds(lambda repository=repository: checkpoint.save(repository)))
            else:
                manager = managers[repository]
                found.append(seconds(lambda manager=manager: manager.save().result()))
    return tuple(times.values())


def load_model(root: Path, rounds: int, blocks: int) -> list[Row]:
    """A compiled Keras model of 138M parameters, against `.keras`."""
    del blocks
    from bench_load_model import measure

    found = measure(root, max(2, rounds // 2), cold=False)
    times = {name: [run["seconds"] for run in runs] for name, runs in found.items()}
    keras_times = times["keras.models.load_model (.keras)"]
    return [
        Row("load_model, 138M parameters, compiled", times["safepoint.load_model"], keras_times, 0.125, note=".keras")
    ]
