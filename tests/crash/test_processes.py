"""Real processes: killed at random, and several at once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.crash.processes import Child
from tests.crash.scenario import KeepLast, check_content, check_nothing_is_left, content_of, tree_of

from safepoint.errors import ConflictError, ExistsError, NotFoundError
from safepoint.repository import Repository
from safepoint.store import LocalStore, MemoryStore, Store

ROUNDS = 16  # of each kind; `tests/torture` kills more, and training processes


def save_for_ever(root: Path, say: Callable[[object], None]) -> None:
    repository = Repository(root)
    while True:
        step = max((s.step for s in repository.snapshots), default=-1) + 1 if repository.exists else 0
        repository.commit(tree_of(content_of(step, size=50_000)), step=step)
        say(step)
        repository.prune([KeepLast(3)], dry_run=False)
        repository.collect()


@pytest.mark.usefixtures("direct_io")
def test_a_job_killed_at_random_loses_nothing_it_was_told(tmp_path: Path, disk: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    acknowledged = -1
    kills = 0
    for number in range(ROUNDS):
        root = (tmp_path if number < 6 else disk) / "run"  # some on a real disk, with direct I/O
        if number == 6:
            acknowledged = -1
        child = Child(lambda say, root=root: save_for_ever(root, say))
        time.sleep(rng.uniform(0.005, 0.15))
        child.kill()
        code, lines = child.wait()
        assert code == -signal.SIGKILL, f"seed {seed}"
        kills += 1
        acknowledged = max([acknowledged, *map(int, lines)])
        repository = Repository(root)
        if acknowledged < 0 and not repository.exists:
            continue
        snapshots, damaged = repository.history()
        assert damaged == {}, f"seed {seed}"
        newest = max((s.step for s in snapshots.values()), default=-1)
        assert newest in {acknowledged, acknowledged + 1}, f"seed {seed}"
        acknowledged = newest
        for snapshot in repository.snapshots:
            check_content(repository, snapshot, content_of(snapshot.step, size=50_000))
        repository.collect()  # the lock died with its process
        check_nothing_is_left(repository)
    assert kills == ROUNDS


def commit_some(repository: Repository, who: int, count: int) -> list[int]:
    return [repository.commit(tree_of(content_of(100 * who + n)), step=100 * who + n).number for n in range(count)]


def collect_until(repository: Repository, stop: threading.Event) -> int:
    runs = 0
    while not stop.is_set():
        try:
            repository.collect()
            runs += 1
        except (ConflictError, NotFoundError):
            pass
    return runs


def check_none_lost(store: Store, numbers: list[int]) -> None:
    repository = Repository(store)
    assert sorted(numbers) == list(range(len(numbers)))
    assert [snapshot.number for snapshot in repository.snapshots] == sorted(numbers)
    for snapshot in repository.snapshots:
        check_content(repository, snapshot, content_of(snapshot.step))


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_writers_in_threads_lose_nothing_while_a_collector_runs(kind: str, disk: Path) -> None:
    store: Store = MemoryStore() if kind == "memory" else LocalStore(disk / "r")
    stop = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        collector = pool.submit(collect_until, Repository(store), stop)
        try:
            saved = list(pool.map(lambda who: commit_some(Repository(store), who, 8), range(4)))
        finally:
            stop.set()
        collector.result()
    check_none_lost(store, [number for numbers in saved for number in numbers])


def test_writers_in_processes_lose_nothing_while_a_collector_runs(disk: Path) -> None:
    root = disk / "r"

    def write(say: Callable[[object], None], who: int) -> None:
        for number in commit_some(Repository(root), who, 12):
            say(number)

    children = [Child(lambda say, who=who: write(say, who)) for who in range(3)]
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        collector = pool.submit(collect_until, Repository(root), stop)
        results = [child.wait() for child in children]
        stop.set()
        collector.result()
    assert [code for code, _ in results] == [0, 0, 0]
    check_none_lost(LocalStore(root), [int(line) for _, lines in results for line in lines])


def test_of_those_that_continue_the_same_snapshot_one_wins(disk: Path) -> None:
    root = disk / "r"
    Repository(root).commit(tree_of(content_of(0)))
    for turn in range(8):
        start = threading.Barrier(4)

        def attempt(who: int, turn: int = turn, start: threading.Barrier = start) -> int | None:
            repository = Repository(root)
            start.wait()
            try:
                return repository.commit(tree_of(content_of(who)), step=who, parent=turn, newest=turn).number
            except ConflictError:
                return None

        with ThreadPoolExecutor(4) as pool:
            numbers = [number for number in pool.map(attempt, range(4)) if number is not None]
        assert numbers == [turn + 1]
    repository = Repository(root)
    assert [s.parent for s in repository.snapshots] == [None, *range(8)]
    repository.collect()
    check_nothing_is_left(repository)


def test_a_first_save_races_with_another(disk: Path) -> None:
    for turn in range(10):
        root = disk / f"r{turn}"
        children = [Child(lambda say, root=root, who=who: commit_once(root, who, say)) for who in range(3)]
        results = [child.wait() for child in children]
        assert [code for code, _ in results] == [0, 0, 0]
        check_none_lost(LocalStore(root), [int(line) for _, lines in results for line in lines])


def commit_once(root: Path, who: int, say: Callable[[object], None]) -> None:
    say(Repository(root).commit(tree_of(content_of(who)), step=who).number)


def test_a_reader_is_never_disturbed_by_collection(disk: Path) -> None:
    root = disk / "r"
    Repository(root).commit(tree_of(content_of(0)), step=0)
    stop = threading.Event()

    def write() -> None:
        repository = Repository(root)
        for step in range(1, 30):
            repository.commit(tree_of(content_of(step)), step=step)
            repository.prune([KeepLast(1)], dry_run=False)
            try:
                repository.collect()
            except ConflictError:
                continue
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        reads = 0
        while not stop.is_set() and not writer.done():
            repository = Repository(root)
            with repository.reading():
                snapshot = repository.resolve()
                check_content(repository, snapshot, content_of(snapshot.step))
            reads += 1
        writer.result()
    assert reads


def test_marks_of_many_at_once_all_hold(disk: Path) -> None:
    root = disk / "r"
    Repository(root).commit(tree_of(content_of(0)))

    def work(who: int) -> None:
        repository = Repository(root)
        for n in range(5):
            repository.add_metrics("id:0", {f"m{who}-{n}": who + n / 10})
            repository.tag("id:0", f"t{who}-{n}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    (snapshot,) = Repository(root).snapshots
    assert set(snapshot.tags) == {f"t{who}-{n}" for who in range(4) for n in range(5)}
    assert dict(snapshot.metrics) == {f"m{who}-{n}": who + n / 10 for who in range(4) for n in range(5)}


def test_a_tag_never_means_two_snapshots(disk: Path) -> None:
    for turn in range(10):
        root = disk / f"r{turn}"
        for step in range(3):
            Repository(root).commit(tree_of({"step": step}))
        start = threading.Barrier(3)

        def attempt(number: int, root: Path = root, start: threading.Barrier = start) -> bool:
            repository = Repository(root)
            start.wait()
            try:
                repository.tag(f"id:{number}", "release")
            except ExistsError:
                return False
            return True

        with ThreadPoolExecutor(3) as pool:
            won = list(pool.map(attempt, range(3)))
        holders = [s.number for s in Repository(root).snapshots if "release" in s.tags]
        assert holders == [number for number in range(3) if won[number]]
        assert len(holders) <= 1
