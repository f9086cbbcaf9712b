"""Many processes on one repository: writers, a collector, readers. No save is lost, no number given twice."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.crash.processes import Child
from tests.crash.scenario import KeepLast, tree_of
from tests.torture.life import check_content, small_content
from tests.torture.machine import real_disk
from tests.torture.report import Torture

from safepoint.errors import ConflictError, CorruptionError, NotFoundError
from safepoint.repository import Repository
from safepoint.store import files
from safepoint.store.files import LocalSink

Say = Callable[[object], None]


def write(root: Path, who: int, count: int, say: Say) -> None:
    repository = Repository(root)
    last: int | None = None
    for step in range(count):
        seed = who * 1000 + step
        last = repository.commit(tree_of(small_content(seed)), step=step, parent=last).number
        say(f"{last} {seed}")


def collect_until(root: Path, stop: Path, say: Say) -> None:
    repository = Repository(root)
    while not stop.exists():
        with contextlib.suppress(ConflictError, NotFoundError):
            repository.prune([KeepLast(5)], dry_run=False)
            say(f"freed {repository.collect()}")
        time.sleep(0.005)


def read_until(root: Path, stop: Path, say: Say) -> None:
    while not stop.exists():
        repository = Repository(root)
        with contextlib.suppress(NotFoundError), repository.reading():
            snapshot = repository.resolve()
            leaves = repository.manifest(snapshot).load(["state/note"]).leaves
            seed = int(str(leaves["state/note"]).rpartition(" ")[2])
            check_content(repository, snapshot, small_content(seed))
            say(f"read {snapshot.number}")


def all_at_once(place: Path, writers: int, count: int) -> tuple[dict[int, list[int]], int, int]:
    """What writers were told: number → seeds; how often somebody read and collected."""
    root, stop = place / "run", place / "stop"
    jobs = [Child(lambda say, who=who: write(root, who, count, say)) for who in range(writers)]
    others = [Child(lambda say: read_until(root, stop, say)), Child(lambda say: collect_until(root, stop, say))]
    results = [job.wait() for job in jobs]
    stop.touch()
    (read_code, reads), (collect_code, collects) = (other.wait() for other in others)
    assert (read_code, collect_code) == (0, 0)
    assert [code for code, _ in results] == [0] * writers
    told: dict[int, list[int]] = {}
    for _, lines in results:
        for line in lines:
            number, seed = map(int, line.split())
            told.setdefault(number, []).append(seed)
    return told, len(reads), len(collects)


def check_told(root: Path, told: dict[int, list[int]]) -> None:
    """Every number was given to one save, whose content is there as long as it was not given up."""
    assert [number for number, seeds in told.items() if len(seeds) > 1] == []
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
    writers, count = (8, 5) if torture.is_short else (32, torture.budget(5, 100))
    with contextlib.ExitStack() as stack:
        place = disk if kind == "memory" else stack.enter_context(real_disk(kind, disk)).place
        told, reads, collects = all_at_once(place, writers, count)
        check_told(place / "run", told)
    assert reads
    what = f"{kind}: {writers} writers of {count}, beside {reads} reads and {collects} collections"
    torture.record("Processes at once", len(told), what)


def commit_by_rename(self: LocalSink, num_bytes: int) -> None:
    """As most programs do: whoever comes last wins."""
    os.ftruncate(self._descriptor, num_bytes)
    os.fsync(self._descriptor)
    self._temporary.replace(self._path)
    files.sync_folder(self._path.parent)
    self.abort()


def test_a_rename_over_another_is_caught(torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalSink, "commit", commit_by_rename)
    tried, caught = 0, 0
    while not caught and tried < 100:  # two writers have to meet
        turn, tried = tried, tried + 1
        (disk / f"{turn}").mkdir()
        try:
            check_told(disk / f"{turn}" / "run", all_at_once(disk / f"{turn}", 4, 4)[0])
        except (AssertionError, CorruptionError):
            caught += 1
    assert caught
    torture.record("Processes at once, broken on purpose", tried, "rename over", controls=f"{caught} times")
