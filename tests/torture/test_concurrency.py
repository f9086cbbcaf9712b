"""Many processes on one repository: writers, a collector, readers. No save is lost, no number given twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from tests.crash.processes import Child
from tests.crash.scenario import KeepLast, tree_of
from tests.torture.life import check_content, small_content
from tests.torture.machine import real_disk
from tests.torture.report import Torture

from safepoint.errors import ConflictError, NotFoundError
from safepoint.repository import Repository
from safepoint.store import files
from safepoint.store.files import LocalSink

Say = Callable[[object], None]
_MOST_STEPS = 100_000
_LONGEST_SECONDS = 60


def write(root: Path, who: int, count: int, pause: float, say: Say, enough: Path) -> None:
    """Save and train in turns, as jobs do; on average training takes `pause` times as long as a save.

    At least `count` times, and until the collector has had its turn, or a minute is over.
    """
    repository, rng = Repository(root), Random(who)
    last: int | None = None
    began = time.monotonic()
    for step in itertools.count():
        if step >= count and (enough.exists() or time.monotonic() - began > _LONGEST_SECONDS):
            break
        seed = who * _MOST_STEPS + step
        started = time.monotonic()
        last = repository.commit(tree_of(small_content(seed)), step=step, parent=last).number
        say(f"{last} {seed}")
        time.sleep(rng.uniform(0, 2 * pause) * (time.monotonic() - started))


def collect_until(root: Path, stop: Path, say: Say, enough: Path) -> None:
    """Prune, collect and compact, whenever nobody saves or reads; a busy repository is tried again."""
    repository = Repository(root)
    compacted, freed = 0, 0
    while not stop.exists():
        with contextlib.suppress(ConflictError, NotFoundError):
            repository.prune([KeepLast(2)], dry_run=False)
            done = repository.compact()
            if done.packs:
                compacted += 1
                say(f"compacted {done.packs}")
        while not stop.exists():
            time.sleep(0.001)
            with contextlib.suppress(ConflictError, NotFoundError):
                freed += (now := repository.collect())
                say(f"collected {now}")
                break
        if compacted and freed:
            enough.touch()


def read_until(root: Path, stop: Path, say: Say) -> None:
    seconds = 0.0
    while not stop.exists():
        time.sleep(0.01 + 2 * seconds)
        started = time.monotonic()
        repository = Repository(root)
        with contextlib.suppress(NotFoundError), repository.reading():
            snapshot = repository.resolve()
            leaves = repository.manifest(snapshot).load(["state/note"]).leaves
            seed = int(str(leaves["state/note"]).rpartition(" ")[2])
            check_content(repository, snapshot, small_content(seed))
            say(f"read {snapshot.number}")
        seconds = time.monotonic() - started


@dataclass
class Seen:
    """What the processes said."""

    told: dict[int, list[int]] = field(default_factory=dict)  # number → the seeds whose savers were told it
    reads: int = 0
    collections: int = 0
    freed: int = 0
    compactions: int = 0
    codes: list[int] = field(default_factory=list)


def all_at_once(place: Path, writers: int, count: int, pause: float = 0) -> Seen:
    root, stop, enough = place / "run", place / "stop", place / "enough"
    if not pause:
        enough.touch()
    jobs = [Child(lambda say, who=who: write(root, who, count, pause, say, enough)) for who in range(writers)]
    others = [Child(lambda say: read_until(root, stop, say)), Child(lambda say: collect_until(root, stop, say, enough))]
    results = [job.wait() for job in jobs]
    stop.touch()
    (read_code, reads), (collect_code, collects) = (other.wait() for other in others)
    seen = Seen(reads=len(reads), codes=[code for code, _ in results] + [read_code, collect_code])
    for _, lines in results:
        for line in lines:
            number, seed = map(int, line.split())
            seen.told.setdefault(number, []).append(seed)
    for line in collects:
        what, _, amount = line.partition(" ")
        seen.collections += what == "collected" and amount != "0"
        seen.freed += int(amount) if what == "collected" else 0
        seen.compactions += what == "compacted"
    return seen


def given_twice(seen: Seen) -> list[int]:
    """Numbers that two savers were told: one of them has lost its snapshot."""
    return [number for number, seeds in seen.told.items() if len(seeds) > 1]


def check_told(root: Path, told: dict[int, list[int]]) -> None:
    """Every number was given to one save, whose content is there as long as it was not given up."""
    repository = Repository(root)
    snapshots, damaged = repository.history()
    assert damaged == {}
    assert sorted(told) == list(snapshots) == list(range(len(told)))
    for number, (seed,) in told.items():
        if not snapshots[number].pruned:
            check_content(repository, snapshots[number], small_content(seed))
    assert not snapshots[max(snapshots)].pruned
    repository.collect()
    assert repository.verify().ok


@pytest.mark.parametrize("kind", ["memory", "ext4", "xfs"])
def test_writers_a_collector_and_readers_at_once_lose_nothing(kind: str, torture: Torture, disk: Path) -> None:
    writers, count = (8, 20) if torture.is_short else (32, torture.budget(5, 100))
    with contextlib.ExitStack() as stack:
        place = disk if kind == "memory" else stack.enter_context(real_disk(kind, disk)).place
        seen = all_at_once(place, writers, count, pause=writers / 4)
        assert set(seen.codes) == {0}
        assert given_twice(seen) == []
        check_told(place / "run", seen.told)
    assert seen.reads
    assert seen.collections, "a harness in which nothing is ever collected tests no collection"
    assert seen.compactions
    assert seen.freed
    what = (
        f"{kind}: {writers} writers of {count}, beside {seen.reads} reads, {seen.collections} collections that freed "
        f"{seen.freed:,} bytes, {seen.compactions} compactions"
    )
    torture.record("Processes at once", len(seen.told), what)


def commit_by_rename(self: LocalSink, num_bytes: int) -> None:
    """As most programs do: whoever comes last wins."""
    os.ftruncate(self._descriptor, num_bytes)
    os.fsync(self._descriptor)
    time.sleep(0.002)  # so that two writers meet
    self._temporary.replace(self._path)
    files.sync_folder(self._path.parent)
    self.abort()


def test_a_rename_over_another_is_caught(
    torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch, without_probe: None
) -> None:
    monkeypatch.setattr(LocalSink, "commit", commit_by_rename)
    tried, caught = 0, 0
    while not caught and tried < 100:  # two writers have to meet
        turn, tried = tried, tried + 1
        (disk / f"{turn}").mkdir()
        caught += len(given_twice(all_at_once(disk / f"{turn}", 4, 4)))
    assert caught
    what = f"{caught} numbers were given to two savers"
    torture.record("Processes at once, broken on purpose", tried, "rename over", controls=what)
