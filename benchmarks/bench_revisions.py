"""Whether saves and restores take longer than they did in another version of this repository.

    .venv/bin/python benchmarks/bench_revisions.py REVISION [--rounds 9] [--megabytes 128] [--folder FOLDER]

The two versions take turns, each in a process of its own. Printed is the median of the rounds' ratios, this version to
that one, of the processor's time and of the clock's: of a save, of one of which the repository has half, of a restore.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
FIGURES = ("save", "save again", "restore")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    processor, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def measure(folder: Path, num_bytes: int) -> dict[str, tuple[float, float]]:
    """Seconds of the processor and of the clock, by figure."""
    import numpy as np

    import safepoint

    rng = np.random.default_rng(0)
    state = {f"w{n}": rng.standard_normal(num_bytes // 64, dtype=np.float32) for n in range(16)}
    checkpoint = safepoint.Checkpoint(state=state)
    checkpoint.save(folder / "warm")
    found = {"save": timed(lambda: checkpoint.save(folder / "run"))}
    for name in list(state)[::2]:
        state[name] += 1
    found["save again"] = timed(lambda: checkpoint.save(folder / "run"))
    found["restore"] = timed(lambda: checkpoint.restore(folder / "run"))
    return found


def apart(sources: Path, folder: str, num_bytes: int) -> dict[str, tuple[float, float]]:
    """The same in a new process, with the sources of one version."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, __file__, "--measure", place, str(num_bytes)]
        environment = {**os.environ, "PYTHONPATH": str(sources)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD~1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), int(options.measure[1]))))
        return
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as place:
        other = Path(place) / "other"
        subprocess.run([*git, "worktree", "add", "-q", "--detach", str(other), options.revision], check=True)
        try:
            size = options.megabytes << 20
            pairs = [
                [apart(sources / "src", options.folder, size) for sources in (ROOT, other)]
                for _ in range(options.rounds)
            ]
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(other)], check=True)
    print("| this version to that one | processor | clock |\n|---|---|---|")
    for figure in FIGURES:
        ratios = [median(here[figure][unit] / there[figure][unit] for here, there in pairs) for unit in (0, 1)]
        print(f"| {figure} | {ratios[0]:.3f} | {ratios[1]:.3f} |")


if __name__ == "__main__":
    main()
