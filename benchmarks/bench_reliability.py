"""How safepoint and its peers take flipped bits, kills, power cuts, damage, models that do not fit; their memory.

    .venv/bin/python benchmarks/bench_reliability.py [--flips 1000] [--kills 40] [--cuts 20] [--report FOLDER]

Prints a page with versions, and keeps it in FOLDER. All by default options, on float32 noise, with these columns:

- one flipped bit, anywhere in the files: "silent": the load raised nothing and gave other values; "harmless": the
  right ones (of safepoint's packs: a bit of the header, which loads do not need and `verify` checks);
- SIGKILL by `strace` at system calls that write, spread over a second save over the first; "lost": neither the old
  state nor the new one can be loaded;
- the power of a real ext4 is cut right after a second save beside the first has returned;
- the newest of two saves is damaged: each of its files is removed, cut in half, or has a page zeroed, and the library's
  own manager goes on; "back": from the save before;
- the live object wants a name more, has one fewer, or another shape than the file: "named": refused, and the error says
  which; "refused": it does not; "told": loaded, with a word about the name; "silent": loaded, without;
- the most memory that a process held beside its live object, in sizes of the state (256 MiB), during a save, and during
  a load into a live object; where a library only gives what it read, that is among it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import io
import logging
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
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from reliability_formats import Format, State, formats, state, zeros

from safepoint.cli.machine import described, peak_bytes, reset_peak

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.torture import machine

CALLS = "openat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,link,unlink,unlinkat,rename,mkdir"
HEADS = (
    "Format",
    "one flipped bit: silent / detected / harmless",
    "killed during a second save: old / new / lost",
    "power cut after save returned: there / wrong / lost",
    "newest damaged: back / refused / unhurt / wrong",
    "does not fit: one more / one fewer / another shape",
    "extra memory: save / load",
)
LARGE = (256 << 20) // (3 * 40 * 4)  # columns of a state of 256 MiB


def equal(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(found[n].tobytes() == x.tobytes() for n, x in expected.items())


def save(keeper: Format, path: Path, seed: int) -> None:
    keeper.save(path, keeper.hold(state(seed)))


def load(keeper: Format, path: Path) -> State:
    return keeper.values(keeper.load(path, keeper.hold(zeros(state(0)))))


def flip(keeper: Format, folder: Path, rng: random.Random, times: int) -> Counter[str]:
    """What becomes of single flipped bits, anywhere in what was written."""
    path = folder / "x"
    save(keeper, path, 1)
    assert equal(load(keeper, path), state(1)), keeper.name
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
            found["harmless" if equal(load(keeper, path), state(1)) else "silent"] += 1
        except Exception:  # noqa: BLE001 — each library has its own errors
            found["detected"] += 1
        file.write_bytes(whole)
    return found


def again(keeper: Format, path: Path) -> None:
    """A second save over the first, once the parent lets this process go on."""
    live = keeper.hold(state(2))
    if not keeper.forks:  # what a library only does the first time is over when it counts
        keeper.save(path.with_name("warm"), live)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        keeper.save(path, live)
    finally:
        os._exit(0)


def child(keeper: Format, path: Path) -> int:
    """A process that waits before its second save."""
    if keeper.forks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            again(keeper, path)
    else:
        command = [sys.executable, __file__, "--only", keeper.name, "--again", str(path)]
        pid = os.posix_spawn(sys.executable, command, os.environ)
    os.waitpid(pid, os.WUNTRACED)
    return pid


def traced(keeper: Format, path: Path, options: list[str]) -> bool:
    """Whether a second save was killed under strace."""
    pid = child(keeper, path)
    with subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), *options], stderr=subprocess.DEVNULL) as tracer:
        while any("TracerPid:\t0\n" in task.read_text("ascii") for task in Path(f"/proc/{pid}/task").glob("*/status")):
            time.sleep(0.001)
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        tracer.terminate()
    shutil.rmtree(path.with_name("warm"), ignore_errors=True)
    return os.WIFSIGNALED(status)


def kill(keeper: Format, folder: Path, rng: random.Random, times: int) -> Counter[str]:
    """What is there after a second save over the first was killed."""
    path, log = folder / "x", folder / "log"

    def begin() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        save(keeper, path, 1)

    begin()
    traced(keeper, path, ["-o", str(log), "-e", f"trace={CALLS}"])
    lines = log.read_text(encoding="utf-8", errors="replace")
    by_thread = Counter(re.findall(r"^(\d+)\s+(\w+)\(", lines, re.MULTILINE))  # strace counts per thread
    most: Counter[str] = Counter()
    for (_, name), count in by_thread.items():
        most[name] = max(most[name], count)
    points = [(name, k + 1) for name, count in most.items() for k in range(count)]
    found: Counter[str] = Counter()
    for name, k in rng.sample(points, len(points))[: 2 * times]:
        begin()
        options = ["-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={k}"]
        if not traced(keeper, path, options):
            continue
        try:
            loaded = load(keeper, path)
            found["old" if equal(loaded, state(1)) else "new" if equal(loaded, state(2)) else "lost"] += 1
        except Exception:  # noqa: BLE001 — each library has its own errors
            found["lost"] += 1
        if found.total() == times:
            break
    return found


def cut_power(keeper: Format, folder: Path, times: int) -> Counter[str]:
    """What a second save that has returned is worth when the power goes."""
    found: Counter[str] = Counter()
    with machine.real_disk("ext4", folder) as disk:
        for number in range(times):
            first, second = disk.place / f"{number}-a", disk.place / f"{number}-b"
            save(keeper, first, 1)
            os.sync()
            save(keeper, second, 2)
            disk.cut()
            disk.come_back()
            try:
                found["there" if equal(load(keeper, second), state(2)) else "wrong"] += 1
            except Exception:  # noqa: BLE001 — each library has its own errors
                found["lost"] += 1
    return found


def damage_newest(keeper: Format, folder: Path) -> Counter[str]:
    """What a manager does when the newest of two saves is damaged."""
    assert keeper.history is not None
    add, resume = keeper.history
    whole, found = folder / "whole", Counter[str]()
    add(whole, 0, state(1))
    before = set(whole.rglob("*"))
    add(whole, 1, state(2))
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


def misfit(keeper: Format, folder: Path) -> str:
    """What a load says into a live object that wants more, less, or other than there is."""
    path = folder / "x"
    save(keeper, path, 1)
    fits = zeros(state(0))
    cases = {
        "delta": fits | {"delta": fits["alpha"].copy()},
        "gamma": {name: fits[name] for name in ("alpha", "beta")},
        "beta": fits | {"beta": np.zeros((40, 61), np.float32)},
    }
    return " / ".join(said(keeper, path, name, live) for name, live in cases.items())


def said(keeper: Format, path: Path, name: str, live: State) -> str:
    """Whether what a load says tells the name of what does not fit."""
    terminal = io.StringIO()
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    verdict = "silent"
    try:
        with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal), warnings.catch_warnings():
            warnings.simplefilter("always")
            keeper.load(path, keeper.hold(live))
    except Exception as error:  # noqa: BLE001 — each library has its own errors
        verdict = "refused"
        terminal.write(str(error))
    finally:
        logging.getLogger().removeHandler(handler)
    if name not in terminal.getvalue():
        return verdict
    return "named" if verdict == "refused" else "told"


def memory(keeper: Format) -> str:
    """How much a save and a load add to what a process holds, each in its own, in sizes of the state."""
    extra = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("save", "load"):
            command = [sys.executable, __file__, "--only", keeper.name, "--hold", what, f"{folder}/x"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            extra.append(output.split()[-1].decode())
    return " / ".join(extra)


def hold(keeper: Format, what: str, path: Path) -> None:
    """Save or load a large state and print how much more than the live object was held."""
    with tempfile.TemporaryDirectory() as folder:  # imports and pools, which a larger state does not make larger
        save(keeper, Path(folder) / "x", 1)
        load(keeper, Path(folder) / "x")
    large = state(1, LARGE)
    size = sum(value.nbytes for value in large.values())
    live = keeper.hold(large if what == "save" else {name: value * 0 for name, value in large.items()})
    del large
    gc.collect()
    before = reset_peak()
    result = keeper.save(path, live) if what == "save" else keeper.load(path, live)
    after = peak_bytes()
    del result
    print(f"{(after - before) / size:.2f}")


def told(found: Counter[str], *kinds: str) -> str:
    return " / ".join(str(found[kind]) for kind in kinds)


def row(keeper: Format, options: argparse.Namespace) -> list[str]:
    """One format's cells; a dash where there is nothing to try."""
    rng = random.Random(options.seed)

    def tried(work: Callable[[Path], str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return work(Path(folder))

    flips, kills, cuts = options.flips, options.kills, options.cuts
    if keeper.dear:
        flips, cuts = max(flips // 10, 1), max(cuts // 4, 1)
    if not keeper.forks:
        kills = max(kills // 4, 1)
    cells = [f"{keeper.name} ({keeper.package} {importlib.metadata.version(keeper.package)})"]
    cells.append(tried(lambda at: told(flip(keeper, at, rng, flips), "silent", "detected", "harmless")))
    cells.append(tried(lambda at: told(kill(keeper, at, rng, kills), "old", "new", "lost")) if options.strace else "—")
    cells.append(
        tried(lambda at: told(cut_power(keeper, at, cuts), "there", "wrong", "lost")) if options.mount else "—"
    )
    kinds = ("back", "refused", "unhurt", "wrong")
    cells.append(tried(lambda at: told(damage_newest(keeper, at), *kinds)) if keeper.history else "—")
    cells.append(tried(lambda at: misfit(keeper, at)) if keeper.fills else "—")
    cells.append(memory(keeper))
    return cells


def line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats whose name has this in it")
    parser.add_argument("--report", type=Path, help="a folder in which to keep the page")
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    if options.again or options.hold:
        keeper = next(keeper for keeper in formats() if keeper.name == options.only)
        again(keeper, options.again) if options.again else hold(keeper, options.hold[0], Path(options.hold[1]))
        return
    options.strace, options.mount = shutil.which("strace"), machine.may_mount()
    now = datetime.now(UTC)
    tried = f"--flips {options.flips} --kills {options.kills} --cuts {options.cuts} --seed {options.seed}"
    page = [
        f"# Beside others, {now:%Y-%m-%d}",
        "",
        f"`benchmarks/bench_reliability.py {tried}`, {described()}.",
        "Keras, TensorFlow and Orbax, whose loads take long, get a tenth of the flips and a quarter of the cuts; they",
        "and DCP, which cannot be forked, a quarter of the kills. The head of that file says what the columns mean.",
        "",
        line(HEADS),
        "|---" * len(HEADS) + "|",
    ]
    print("\n".join(page))
    for keeper in formats():
        if options.only in keeper.name:
            page.append(line(row(keeper, options)))
            print(page[-1], flush=True)
    if options.report:
        (options.report / f"{now:%Y-%m-%d}-peers.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
