"""Rows of looking inside and of converting: a file of 1 GB that somebody else wrote, two snapshots of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from results import Row
from state import remember, seconds

import safepoint
from safepoint.api.convert import convert
from safepoint.cli.machine import forget, page_aligned, raw_read, raw_write

_TENSORS = 250
_ELEMENTS = 1 << 20
_PIECE_ELEMENTS = 1 << 18  # what stays in the cache from one pass to the next


def inside(root: Path, rounds: int, blocks: int) -> list[Row]:
    """`show`, `show --stats`, `diff` and `convert`."""
    from safetensors.numpy import load_file, save_file

    file = root / "model.safetensors"
    rng = np.random.default_rng(0)
    state = {f"layer{i}.weight": rng.standard_normal((1024, _ELEMENTS // 1024), np.float32) for i in range(_TENSORS)}
    save_file(state, file)
    remember(file)
    helps, shows, stats, plain, memory = [], [], [], [], []
    for _ in range(rounds + 1):
        started, _ = _command("--help")
        looked, _ = _command("show", str(file))
        measured, peak = _command("show", str(file), "--stats")
        helps.append(started)
        shows.append(max(0.0, looked - started))
        stats.append(max(0.0, measured - started))
        memory.append(peak / 1e6)
        plain.append(seconds(lambda: _by_numpy(load_file(file))))
    helps, shows, stats, plain = (times[1:] for times in (helps, shows, stats, plain))  # the first compiled bytecode
    size = sum(array.nbytes for array in state.values())
    return [
        Row("start-up: safepoint --help, whole process", helps, goal=0.25),
        Row("show, 1 GB of safetensors, after start-up", shows, goal=0.3),
        Row("show --stats of it, after start-up", stats, plain, 2.0, note="NumPy, two threads", num_bytes=size),
        Row("memory of the process", memory, goal=256, unit="MB"),
        *_differing(root, rounds, blocks),
        *_converted(root, rounds, file),
    ]


# A small process between: what a child held before it began its program counts as its peak, too.
_WATCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


def _command(*arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of a whole process, as installed: with the bytecode of the sources."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _WATCHER, sys.executable, "-m", "safepoint", *arguments]
    took, peak = subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout.split()
    return float(took), int(peak)


def _by_numpy(state: dict[str, NDArray[np.float32]]) -> None:
    """What `--stats` tells but for quantiles and twins, by the plain functions that one would write, two threads."""

    def look(array: NDArray[np.float32]) -> None:
        for run in np.split(array.reshape(-1), max(1, array.size // _PIECE_ELEMENTS)):
            run.min(), run.max(), run.mean(dtype=np.float64), run.std(dtype=np.float64), np.vdot(run, run)
            np.count_nonzero(run), np.isnan(run).sum(), np.isinf(run).sum()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(look, state.values()))


def _differing(root: Path, rounds: int, blocks: int) -> list[Row]:
    """Two snapshots of which 5 % of the bytes differ."""
    count = 30 * blocks
    state = {f"layer{i}": np.random.default_rng(i).random(_ELEMENTS, np.float32) for i in range(count)}
    checkpoint = safepoint.Checkpoint(state=state)
    checkpoint.save(root / "run")
    for i in range(0, count, 20):
        state[f"layer{i}"] += 1
    checkpoint.save(root / "run")
    times, shares = [], []
    for _ in range(rounds):
        with safepoint.open(root / "run@id:0") as first, safepoint.open(root / "run@id:1") as second:
            before, started = _read_so_far(), time.perf_counter()
            found = first.diff(second)
            times.append(time.perf_counter() - started)
            shares.append((_read_so_far() - before) / sum(spec.num_bytes for spec in second.specs.values()))
        assert len(found.moved) == len(range(0, count, 20))
    return [
        Row("diff of two snapshots, 5 % differ", times),
        Row("bytes that it reads, of one snapshot's", shares, goal=0.12, unit=""),
    ]


def _read_so_far() -> int:
    """Bytes that this process asked the kernel for. Source: proc(5), io."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def _converted(root: Path, rounds: int, file: Path) -> list[Row]:
    """Cold reading, durable writing, and reading back."""
    memory = page_aligned(32 << 20)
    times: dict[str, list[float]] = {"pt": [], "safetensors": []}
    raw: list[float] = []
    size = file.stat().st_size
    for _ in range(rounds):
        for suffix, found in times.items():
            target = root / f"converted.{suffix}"
            forget(file)
            found.append(seconds(lambda target=target: convert(file, target)))
            target.unlink()
        forget(file)
        read = seconds(lambda: raw_read(file, memory, direct=True))
        raw.append(read + seconds(lambda: raw_write(root / "raw", size, memory[: 16 << 20])))
        (root / "raw").unlink()
    return [
        Row(f"convert 1 GB to .{suffix}, read back", found, raw, 1.3, note="raw read and write", num_bytes=size)
        for suffix, found in times.items()
    ]
