"""SIGKILL at every system call that writes, and at random instants: nothing acknowledged is lost, life goes on."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from tests.crash.processes import Child
from tests.crash.scenario import tree_of
from tests.torture.chapters import Chapters, any_life, chapters
from tests.torture.faults import WRITES, BadDay, bad_day
from tests.torture.life import (
    KEY,
    LIFE,
    PUBLIC,
    Step,
    check_content,
    check_survival,
    collect,
    prune,
    save_in_background,
    small_content,
    tag,
)
from tests.torture.machine import give_up, need
from tests.torture.report import Torture

from safepoint.errors import ConflictError, NotFoundError
from safepoint.repository import Repository, write_model_file
from safepoint.repository.signing import SUFFIX, check_file, sign_file
from safepoint.store import LocalStore
from safepoint.store.files import LocalSink

Say = Callable[[object], None]
BACKGROUND: list[Step] = [save_in_background(0), tag("latest", "kept"), save_in_background(1), prune(1), collect]
SYSTEM_CALLS = [
    "openat", "pwritev", "pwritev2", "pwrite64", "write", "fallocate", "ftruncate", "fsync", "link", "linkat", "unlink",
    "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "flock", "close",
]  # fmt: skip


def lives(rng: Random) -> Iterator[list[Step]]:
    """The two above, then any others."""
    yield LIFE
    yield BACKGROUND
    while True:
        yield any_life(rng)


def check_killed(place: Path, story: Chapters, code: int, lines: list[str], what: str) -> bool:
    """Whether it was killed; and then, whether all that it had said is there."""
    assert code in {0, -signal.SIGKILL}, what
    try:
        check_survival(LocalStore(place), story.known_after(int(lines[-1]) if lines else 0))
    except BaseException as error:
        raise AssertionError(what) from error
    shutil.rmtree(place)
    return code != 0


# -- inside the process: quick, and everywhere ---------------------------------------------------------------------


def killed_at(place: Path, story: Chapters, at: int) -> Child:
    def life(say: Say) -> None:
        with bad_day(BadDay(str(place), at=at, kind="KILL", calls=WRITES)):
            story.live(place, say)

    return Child(life)


def test_killed_at_any_call_that_writes(torture: Torture, disk: Path) -> None:
    budget = torture.budget(170, 2_000)
    kills = 0
    for number, steps in enumerate(lives(torture.rng)):
        story = chapters(disk / f"told-{number}", steps)
        with bad_day(BadDay(str(disk / f"counted-{number}"), calls=WRITES)) as day:
            story.live(disk / f"counted-{number}", lambda _: None)
        points = range(len(day.done))
        for at in points if budget > len(points) else sorted(torture.rng.sample(points, budget // 2)):
            place = disk / f"killed-{number}-{at}"
            code, lines = killed_at(place, story, at).wait()
            kills += check_killed(place, story, code, lines, f"life {number}, call {at}: {torture.replay}")
        if kills >= budget * 0.95:
            break
    torture.record("SIGKILL in the program", kills, f"before the k-th call that writes, of {number + 1} lives")


def test_killed_while_a_file_is_signed(torture: Torture, disk: Path) -> None:
    """The old signature or the new; the file itself is never written to."""
    path = disk / "model"
    write_model_file(path, tree_of(small_content(0)), structure={}, format="test")
    whole = path.read_bytes()

    def work(say: Say, day: BadDay) -> None:
        with bad_day(day):
            for _ in range(2):
                say(sign_file(path, KEY).name)

    counted = BadDay(str(disk), calls=WRITES)
    work(lambda _: None, counted)
    signature = path.with_name(f"{path.name}{SUFFIX}")
    for at in range(len(counted.done)):
        signature.unlink(missing_ok=True)
        day = BadDay(str(disk), at=at, kind="KILL", calls=WRITES)
        code, lines = Child(lambda say, day=day: work(say, day)).wait()
        assert code == -signal.SIGKILL
        assert path.read_bytes() == whole, torture.replay
        if lines or signature.exists():
            check_file(path, PUBLIC)
    assert sign_file(path, KEY).exists()
    torture.record("SIGKILL in the program", len(counted.done), "before the k-th call that writes a file's signature")


# -- by strace: at system calls, whoever makes them ----------------------------------------------------------------


def traced(place: Path, story: Chapters, options: list[str]) -> tuple[int, list[str]]:
    """Live under strace, in a process that was there before: Python starts once."""

    def life(say: Say) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        story.live(place, say)

    child = Child(life)
    os.waitpid(child.pid, os.WUNTRACED)
    command = [need("strace"), "-f", "-qq", "-p", str(child.pid), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
        try:
            while not is_traced(child.pid):
                if tracer.poll() is not None:
                    assert tracer.stderr is not None
                    child.kill()
                    child.wait()
                    give_up(f"strace: {tracer.stderr.read().decode()}", expected=os.geteuid() == 0)
                time.sleep(0.001)
            os.kill(child.pid, signal.SIGCONT)
            return child.wait()
        finally:
            tracer.terminate()


def is_traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return "TracerPid:\t0\n" not in status


def calls_of(place: Path, log: Path, story: Chapters) -> collections.Counter[str]:
    """How often each system call that writes is made."""
    code, _ = traced(place, story, ["-o", str(log), "-e", f"trace={','.join(SYSTEM_CALLS)}"])
    assert code == 0
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.match(r"\d+\s+(\w+)\(", line) for line in lines)
    return collections.Counter(match[1] for match in found if match)


def test_killed_at_any_system_call_that_writes(torture: Torture, disk: Path) -> None:
    need("strace")
    budget = torture.budget(30, 2_000)
    kills = 0
    names: set[str] = set()
    for number, steps in enumerate(lives(torture.rng)):
        story = chapters(disk / f"told-{number}", steps)
        counts = calls_of(disk / f"counted-{number}", disk / "log", story)
        points = [(name, k) for name, count in counts.items() for k in range(1, count + 1)]
        for name, k in points if budget > len(points) else torture.rng.sample(points, budget // 2):
            place = disk / f"killed-{number}-{name}-{k}"
            code, lines = traced(place, story, ["-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={k}"])
            killed = check_killed(place, story, code, lines, f"life {number}, {name} {k}: {torture.replay}")
            kills += killed
            names |= {name} if killed else set()
            if kills >= budget * 1.2:
                break
        if kills >= budget * 0.9:
            break
    what = f"(system call, k) of {number + 1} lives: {', '.join(sorted(names))}"
    torture.record("SIGKILL by strace", kills, what)


# -- a broken protocol ---------------------------------------------------------------------------------------------


def write_in_place(self: LocalSink, num_bytes: int) -> None:
    """As most programs save: the name is there before the bytes are."""
    data = self._temporary.read_bytes()[:num_bytes]
    size = -(-num_bytes // 4)
    with self._path.open("wb", buffering=0) as file:
        for start in range(0, len(data), size):
            os.pwritev(file.fileno(), [data[start : start + size]], start)
        os.fsync(file.fileno())
    self.abort()


def test_a_program_that_writes_in_place_is_caught(
    torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch, without_probe: None
) -> None:
    story = chapters(disk / "told", BACKGROUND)
    monkeypatch.setattr(LocalSink, "commit", write_in_place)
    caught = 0
    for at in range(40, 140, 3):
        code, lines = killed_at(disk / f"{at}", story, at).wait()
        assert code in {0, -signal.SIGKILL}, "it failed by itself: that is not being caught"
        try:
            check_killed(disk / f"{at}", story, code, lines, "")
        except AssertionError:
            caught += 1
            if torture.is_short and caught > 1:
                break
    assert caught
    torture.record("SIGKILL, broken on purpose", 34, "files written under their names", controls=f"{caught} times")


# -- at random instants --------------------------------------------------------------------------------------------


def write_for_ever(root: Path, who: int, first: int, say: Say) -> None:
    """One of several jobs that save into one repository, each continuing its own snapshots."""
    last: int | None = None
    for step in range(first, 1_000_000):
        content = small_content(step * 10 + who)
        last = Repository(root).commit(tree_of(content), step=step, parent=last).number
        say(f"{last} {step * 10 + who}")


def collect_for_ever(root: Path, say: Say) -> None:
    while True:
        with contextlib.suppress(ConflictError, NotFoundError):
            say(f"freed {Repository(root).collect()}")
        time.sleep(0.002)


def start(root: Path, first: int) -> list[Child]:
    writers = [Child(lambda say, who=who: write_for_ever(root, who, first, say)) for who in range(2)]
    return [*writers, Child(lambda say: collect_for_ever(root, say))]


def test_writers_and_a_collector_killed_at_random_lose_nothing(torture: Torture, disk: Path) -> None:
    budget = torture.budget(30, 500)
    kills = saves = 0
    told: dict[int, int] = {}
    root = disk / "run-0"
    while kills < budget:
        if kills % 30 == 0:  # history grows
            shutil.rmtree(root, ignore_errors=True)
            root, told = disk / f"run-{kills}", {}
        first = kills * 1000
        children = start(root, first)
        time.sleep(torture.rng.uniform(0.01, 0.2))
        for child in torture.rng.sample(children, len(children)):
            child.kill()
            time.sleep(torture.rng.uniform(0, 0.01))
        results = [child.wait() for child in children]
        assert [code for code, _ in results] == [-signal.SIGKILL] * 3, torture.replay
        kills += 3
        said = [line.split() for _, lines in results[:2] for line in lines]
        told |= {int(number): int(seed) for number, seed in said}
        saves += len(said)
        check_told(root, told, torture.replay)
    torture.record("SIGKILL at random", kills, f"of 2 writers and a collector on one repository; {saves:,} saves told")


def check_told(root: Path, told: dict[int, int], replay: str) -> None:
    """Everything that was acknowledged is there; what is there beyond it is whole; the next collection works."""
    repository = Repository(root)
    if not repository.exists:
        assert not told, replay
        return
    snapshots, damaged = repository.history()
    assert damaged == {}, replay
    assert set(told) <= set(snapshots), replay
    for number, snapshot in snapshots.items():
        if number in told:
            check_content(repository, snapshot, small_content(told[number]))
    repository.collect()
    assert repository.verify().ok, replay
