"""Real power cuts: real file systems that lose what they had not written, at any call of a real program.

A file system on an image is shut down without flushing its journal, unmounted, mounted again: what is there then is
what a machine finds after its power came back.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from tests.crash.processes import Child
from tests.crash.scenario import tree_of
from tests.torture.chapters import Chapters, any_life, chapters
from tests.torture.faults import WRITES, BadDay, bad_day
from tests.torture.life import LIFE, Step, check_history, check_survival, small_content
from tests.torture.machine import FILE_SYSTEMS, RealDisk, real_disk
from tests.torture.report import Torture

from safepoint.errors import CorruptionError
from safepoint.repository import read_model_file, write_model_file
from safepoint.store import LocalStore, files
from safepoint.store.files import LocalSink

Say = Callable[[object], None]
COMMIT = LocalSink.commit


def live_until_cut(disk: RealDisk, place: Path, at: int, work: Callable[[Say], None], *, journal: bool) -> list[str]:
    """What the program said before the lights went out at its `at`-th call; `journal`: others synced just before."""

    def last_act() -> None:
        if journal:  # names are on the disk, data perhaps not: it happens all the time
            descriptor = os.open(disk.place / "other", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, b"x")
            os.fsync(descriptor)
        disk.cut()

    def life(say: Say) -> None:
        with bad_day(BadDay(str(place), at=at, kind="KILL", calls=WRITES, last_act=last_act)):
            work(say)
        last_act()
        os.kill(os.getpid(), signal.SIGKILL)

    code, lines = Child(life).wait()
    if code != -signal.SIGKILL:  # no AssertionError: a broken program that fails by itself is not one that was caught
        raise RuntimeError(f"it ended by itself, with {code}")
    return lines


def count_calls(place: Path, work: Callable[[Say], None]) -> int:
    with bad_day(BadDay(str(place), calls=WRITES)) as day:
        work(lambda _: None)
    return len(day.done)


def cut_once(disk: RealDisk, story: Chapters, at: int, *, journal: bool) -> None:
    """One cut, and what is found after it."""
    place = disk.place / "run"
    lines = live_until_cut(disk, place, at, lambda say: story.live(place, say), journal=journal)
    disk.come_back()
    known = story.known_after(int(lines[-1]) if lines else 0)
    check_history(LocalStore(place), known)
    check_survival(LocalStore(place), known)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_power_cut_at_any_call_loses_nothing_acknowledged(kind: str, torture: Torture, disk: Path) -> None:
    budget = torture.budget(60, 1_000)
    cuts = lives = 0
    with real_disk(kind, disk) as real:
        steps: list[Step] = LIFE
        while cuts < budget:
            story = chapters(disk / f"told-{lives}", steps)
            count = count_calls(
                disk / f"counted-{lives}", lambda say, n=lives, s=story: s.live(disk / f"counted-{n}", say)
            )
            calls = range(count + 1)
            points = calls if budget > count else sorted(torture.rng.sample(calls, budget))
            for at in points:
                journal = torture.rng.random() < 0.5
                try:
                    cut_once(real, story, at, journal=journal)
                except BaseException as error:
                    what = f"life {lives}, cut at call {at}, journal {journal}"
                    raise AssertionError(f"{kind}: {what}: {torture.replay}") from error
                real.remove(real.place / "run")
                cuts += 1
            steps = any_life(torture.rng)
            lives += 1
    torture.record("Real power cuts", cuts, f"{kind}, at every call that writes of {lives} lives")


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_power_cut_leaves_the_old_model_file_or_the_new(kind: str, torture: Torture, disk: Path) -> None:
    budget = torture.budget(15, 100)

    def work(path: Path) -> Callable[[Say], None]:
        def run(say: Say) -> None:
            for step in range(3):
                write_model_file(path, tree_of(small_content(step)), structure={}, format="test")
                say(step)

        return run

    with real_disk(kind, disk) as real:
        count = count_calls(disk / "counted", work(disk / "counted" / "model"))
        for _ in range(budget):
            at, journal = torture.rng.randrange(count + 1), torture.rng.random() < 0.5
            path = real.place / "models" / "model"
            lines = live_until_cut(real, path.parent, at, work(path), journal=journal)
            real.come_back()
            told = int(lines[-1]) if lines else -1
            if told >= 0 or path.exists():
                leaves = read_model_file(path).load().leaves
                assert leaves["state/note"] in {f"after step {told}", f"after step {told + 1}"}, torture.replay
            real.remove(path.parent)
    torture.record("Real power cuts, whole-model files", budget, f"{kind}: the old file or the new")


def commit_without_fsync(self: LocalSink, num_bytes: int) -> None:
    real, os.fsync = os.fsync, lambda descriptor: None
    try:
        COMMIT(self, num_bytes)
    finally:
        os.fsync = real


BROKEN: dict[str, tuple[object, str, Callable[..., None]]] = {
    "no fsync at all": (LocalSink, "commit", commit_without_fsync),
    "no fsync of folders": (files, "sync_folder", lambda folder: None),
}


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_program_that_does_not_sync_is_caught(
    kind: str, broken: str, torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch, without_probe: None
) -> None:
    story = chapters(disk / "told", LIFE)
    monkeypatch.setattr(*BROKEN[broken])
    tried = caught = 0
    with real_disk(kind, disk) as real:
        for at in Random(0).sample(range(20, 200), 40):
            tried += 1
            try:
                cut_once(real, story, at, journal=bool(at % 2) and broken == "no fsync at all")
            except (AssertionError, CorruptionError):
                caught += 1
            real.remove(real.place / "run")
            if caught >= torture.budget(2, 20):
                break
    assert caught
    torture.record("Real power cuts, broken on purpose", tried, f"{kind}, {broken}", controls=f"{caught} times")
