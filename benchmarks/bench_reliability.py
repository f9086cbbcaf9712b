"""How files of safepoint and its peers take a flipped bit, and a kill during a second save over the first.

    .venv/bin/python benchmarks/bench_reliability.py [--flips 1000] [--kills 40] [--seed 0]

Prints a table with versions. "Silent": the load raised nothing and gave other values; "harmless": the right ones (of
safepoint's packs: a bit of the header, which loads do not need and `verify` checks). The kill is SIGKILL by `strace` at
system calls that write, spread over the save; "lost": neither the old state nor the new one can be loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
State = dict[str, np.ndarray]
CALLS = "openat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,link,unlink,unlinkat,rename,mkdir"


@dataclass(frozen=True)
class Format:
    """One way to keep a state.

    Attributes:
        name: of it.
        package: whose version is told.
        save: writes a state to a path that may exist.
        load: reads it back.
    """

    name: str
    package: str
    save: Callable[[Path, State], object]
    load: Callable[[Path], State]


def state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((40, 60)).astype(np.float32) for name in ("a", "b", "c")}


def formats() -> Iterator[Format]:
    """All that are installed."""
    import safepoint

    def restore(path: Path) -> State:
        live = {name: np.zeros_like(value) for name, value in state(0).items()}
        safepoint.Checkpoint(state=live).restore(path)
        return live

    yield Format(
        "safepoint repository", "safepoint", lambda path, s: safepoint.Checkpoint(state=dict(s)).save(path), restore
    )
    with contextlib.suppress(ImportError):
        import safetensors.numpy as st

        yield Format("safetensors", "safetensors", lambda path, s: st.save_file(s, path), st.load_file)
    with contextlib.suppress(ImportError):
        import torch

        def load_torch(path: Path) -> State:
            return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}

        yield Format(
            "torch.save",
            "torch",
            lambda p, s: torch.save({n: torch.from_numpy(x) for n, x in s.items()}, p),
            load_torch,
        )
    with contextlib.suppress(ImportError):
        import h5py

        def save_h5(path: Path, s: State) -> None:
            with h5py.File(path, "w") as file:
                for name, value in s.items():
                    file[name] = value

        def load_h5(path: Path) -> State:
            with h5py.File(path) as file:
                return {name: file[name][()] for name in state(0)}

        yield Format("HDF5", "h5py", save_h5, load_h5)

    def save_npz(path: Path, s: State) -> None:
        with path.open("wb") as file:
            np.savez(file, **s)

    yield Format("npz", "numpy", save_npz, lambda path: dict(np.load(path)))


def equal(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(found[n].tobytes() == x.tobytes() for n, x in expected.items())


def flip(keeper: Format, folder: Path, rng: random.Random, times: int) -> Counter[str]:
    """What becomes of single flipped bits, anywhere in what was written."""
    path = folder / "x"
    keeper.save(path, state(1))
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and f.stat().st_size]
    sizes = [file.stat().st_size for file in files]
    found: Counter[str] = Counter()
    for _ in range(times):
        (file,) = rng.choices(files, sizes)
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            found["harmless" if equal(keeper.load(path), state(1)) else "silent"] += 1
        except Exception:  # noqa: BLE001 — each library has its own errors
            found["detected"] += 1
        file.write_bytes(whole)
    return found


def child(work: Callable[[], object]) -> int:
    """A process that waits for its tracer, then works."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    return pid


def traced(work: Callable[[], object], options: list[str]) -> bool:
    """Whether it was killed under strace."""
    pid = child(work)
    with subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), *options], stderr=subprocess.DEVNULL) as tracer:
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text(encoding="ascii"):
            time.sleep(0.001)
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        tracer.terminate()
    return os.WIFSIGNALED(status)


def kill(keeper: Format, folder: Path, rng: random.Random, times: int) -> Counter[str]:
    """What is there after a second save over the first was killed."""
    path, log = folder / "x", folder / "log"

    def begin() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        keeper.save(path, state(1))

    begin()
    traced(lambda: keeper.save(path, state(2)), ["-o", str(log), "-e", f"trace={CALLS}"])
    names = re.findall(r"^\d+\s+(\w+)\(", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    points = [(name, k + 1) for name, count in Counter(names).items() for k in range(count)]
    found: Counter[str] = Counter()
    for name, k in rng.sample(points, min(times, len(points))):
        begin()
        options = ["-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={k}"]
        if not traced(lambda: keeper.save(path, state(2)), options):
            continue
        try:
            loaded = keeper.load(path)
            found["old" if equal(loaded, state(1)) else "new" if equal(loaded, state(2)) else "lost"] += 1
        except Exception:  # noqa: BLE001 — each library has its own errors
            found["lost"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"seed {options.seed}\n")
    print("| Format | one flipped bit: silent / detected / harmless | killed during a second save: old / new / lost |")
    print("|---|---|---|")
    for keeper in formats():
        rng = random.Random(options.seed)
        with tempfile.TemporaryDirectory() as folder:
            flips = flip(keeper, Path(folder), rng, options.flips)
        with tempfile.TemporaryDirectory() as folder:
            kills = kill(keeper, Path(folder), rng, options.kills) if shutil.which("strace") else Counter()
        version = importlib.metadata.version(keeper.package)
        first = " / ".join(str(flips[kind]) for kind in ("silent", "detected", "harmless"))
        second = " / ".join(str(kills[kind]) for kind in ("old", "new", "lost")) if kills else "no strace here"
        print(f"| {keeper.name} ({keeper.package} {version}) | {first} | {second} |", flush=True)


if __name__ == "__main__":
    main()
