"""How safepoint and its peers take a flipped bit, a kill, a power cut, and damage of the newest of several saves.

    .venv/bin/python benchmarks/bench_reliability.py [--flips 1000] [--kills 40] [--cuts 20] [--seed 0] [--only NAME]

Prints a table with versions. "Silent": the load raised nothing and gave other values; "harmless": the right ones (of
safepoint's packs: a bit of the header, which loads do not need and `verify` checks). The kill is SIGKILL by `strace` at
system calls that write, spread over the save; "lost": neither the old state nor the new one can be loaded. The power of
a real ext4 is cut right after a second save beside the first has returned. Damage of the newest: each of its files is
removed, cut in half, or has a page zeroed, and the library's own manager goes on; "back": from the save before.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable
from pathlib import Path

from reliability_formats import Format, State, formats, state

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.torture import machine

CALLS = "openat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,link,unlink,unlinkat,rename,mkdir"


def equal(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(found[n].tobytes() == x.tobytes() for n, x in expected.items())


def flip(keeper: Format, folder: Path, rng: random.Random, times: int) -> Counter[str]:
    """What becomes of single flipped bits, anywhere in what was written."""
    path = folder / "x"
    keeper.save(path, state(1))
    assert equal(keeper.load(path), state(1)), keeper.name
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


def cut_power(keeper: Format, folder: Path, times: int) -> Counter[str]:
    """What a second save that has returned is worth when the power goes."""
    found: Counter[str] = Counter()
    with machine.real_disk("ext4", folder) as disk:
        for number in range(times):
            first, second = disk.place / f"{number}-a", disk.place / f"{number}-b"
            keeper.save(first, state(1))
            os.sync()
            keeper.save(second, state(2))
            disk.cut()
            disk.come_back()
            try:
                found["there" if equal(keeper.load(second), state(2)) else "wrong"] += 1
            except Exception:  # noqa: BLE001 — each library has its own errors
                found["lost"] += 1
    return found


def damage_newest(keeper: Format, folder: Path) -> Counter[str]:
    """What a manager does when the newest of two saves is damaged."""
    assert keeper.history is not None
    save, resume = keeper.history
    whole, found = folder / "whole", Counter[str]()
    save(whole, 0, state(1))
    before = set(whole.rglob("*"))
    save(whole, 1, state(2))
    newest = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.stat().st_size and p not in before]
    for number, (name, kind) in enumerate((name, kind) for name in newest for kind in ("gone", "cut", "zeroed")):
        place = folder / f"{number}"
        shutil.copytree(whole, place)
        file = place / name
        data = file.read_bytes()
        if kind == "gone":
            file.unlink()
        else:
            file.write_bytes(data[: len(data) // 2] if kind == "cut" else bytes(min(4096, len(data))) + data[4096:])
        try:
            loaded = resume(place)
            found["back" if equal(loaded, state(1)) else "unhurt" if equal(loaded, state(2)) else "wrong"] += 1
        except Exception:  # noqa: BLE001 — each library has its own errors
            found["refused"] += 1
    return found


def told(found: Counter[str], *kinds: str) -> str:
    return " / ".join(str(found[kind]) for kind in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--only", default="", help="formats whose name has this in it")
    options = parser.parse_args()
    print(f"seed {options.seed}\n")
    print(
        "| Format | one flipped bit: silent / detected / harmless | killed during a second save: old / new / lost ",
        end="",
    )
    print("| power cut after save returned: there / wrong / lost | newest damaged: back / refused / unhurt / wrong |")
    print("|---|---|---|---|---|")
    may_mount = machine.may_mount()
    for keeper in formats():
        if options.only not in keeper.name:
            continue
        rng = random.Random(options.seed)
        with tempfile.TemporaryDirectory() as folder:
            flips = told(flip(keeper, Path(folder), rng, options.flips), "silent", "detected", "harmless")
        kills = cuts = newest = "—"
        if keeper.forks and shutil.which("strace"):
            with tempfile.TemporaryDirectory() as folder:
                kills = told(kill(keeper, Path(folder), rng, options.kills), "old", "new", "lost")
        if may_mount:
            with tempfile.TemporaryDirectory() as folder:
                cuts = told(cut_power(keeper, Path(folder), options.cuts), "there", "wrong", "lost")
        if keeper.history is not None:
            with tempfile.TemporaryDirectory() as folder:
                newest = told(damage_newest(keeper, Path(folder)), "back", "refused", "unhurt", "wrong")
        version = importlib.metadata.version(keeper.package)
        print(f"| {keeper.name} ({keeper.package} {version}) | {flips} | {kills} | {cuts} | {newest} |", flush=True)


if __name__ == "__main__":
    main()
