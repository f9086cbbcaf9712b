"""Seconds to load a 138M-parameter compiled Keras model with its Adam state, against `keras.models.load_model`.

Rounds are interleaved, each load runs in a process of its own, files are warm unless --cold; the table shows medians.

    python benchmarks/bench_load_model.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CHILD = """
import json, os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, safepoint
how, path, small = sys.argv[1:]
load = keras.models.load_model if how == "keras" else safepoint.load_model
load(small)  # imports, first use of the backend
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
model = load(path)
seconds = time.perf_counter() - start
assert model.compiled and len(model.optimizer.variables) > 2
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "megabytes": (peak - before) / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax", "torch"])
    parser.add_argument("--folder", help="where to write the files (4 GB); default: a temporary folder")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each load")
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _report(measure(Path(folder), arguments.rounds, cold=arguments.cold), arguments.backend)


def measure(folder: Path, rounds: int, *, cold: bool) -> dict[str, list[dict[str, float]]]:
    subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
    ways = {
        "keras.models.load_model (.keras)": ("keras", "model.keras", "small.keras"),
        "safepoint.load_model (.keras)": ("safepoint", "model.keras", "small.keras"),
        "safepoint.load_model": ("safepoint", "model", "small"),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (how, file, small) in ways.items():
            _prepare(folder / file, cold=cold)
            command = [sys.executable, "-W", "ignore", "-c", _CHILD, how, str(folder / file), str(folder / small)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}  {name:34}{results[name][-1]['seconds']:8.2f} s", file=sys.stderr)
    return results


def _make(folder: Path) -> None:
    """VGG16, compiled with Adam whose slots exist: 1.66 GB."""
    import keras

    import safepoint

    small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    big: Any = keras.applications.VGG16(weights=None)
    for model, name in ((small, "small"), (big, "model")):
        model.compile("adam", "categorical_crossentropy")
        model.optimizer.build(model.trainable_variables)
        for slot in model.optimizer.variables[2:]:
            slot.assign(keras.random.normal(slot.shape))
        model.save(folder / f"{name}.keras")
        safepoint.save_model(model, folder / name)


def _prepare(path: Path, *, cold: bool) -> None:
    with path.open("rb") as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(16 << 20):
                pass


def _report(results: dict[str, list[dict[str, float]]], backend: str) -> None:
    base = statistics.median(run["seconds"] for run in next(iter(results.values())))
    print(
        f"\nVGG16 + Adam, 138M parameters, 1.66 GB, Keras on {backend}: median of {len(next(iter(results.values())))}"
    )
    print(f"{'':36}{'seconds':>9}{'faster':>9}{'peak MB':>9}")
    for name, runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = statistics.median(run["megabytes"] for run in runs)
        print(f"{name:36}{seconds:9.2f}{base / seconds:8.1f}x{peak:9.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        _make(Path(sys.argv[2]))
    else:
        main()
