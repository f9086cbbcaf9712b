"""Writers, taggers, pruners, collectors and readers on one repository, in any order of their store operations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import numpy as np
from tests.crash.scenario import KeepLast, tree_of
from tests.torture.report import Torture
from tests.torture.schedule import Schedule, ScheduledStore

from safepoint.errors import ConflictError, CorruptionError, ExistsError, NotFoundError, UnsupportedError
from safepoint.repository import Repository, Snapshot
from safepoint.store import MemoryStore

FROZEN = np.arange(500, dtype=np.float32)


def content(seed: int) -> dict[str, Any]:
    return {"frozen": FROZEN, "w": np.full(40, seed, np.float32), "seed": seed}


def check(repository: Repository, snapshot: Snapshot, seed: int | None) -> None:
    leaves = repository.manifest(snapshot).load(["frozen", "w", "seed"], verify="full").leaves
    wanted = content(leaves["seed"] if seed is None else seed)
    assert leaves["seed"] == wanted["seed"]
    assert all((leaves[name].numpy() == wanted[name]).all() for name in ("frozen", "w"))


@cache
def beginning() -> dict[str, bytes]:
    """A repository of three snapshots that share a pack."""
    store = MemoryStore()
    for seed in range(3):
        Repository(store).commit(tree_of(content(seed)), step=seed)
    return store.files


@dataclass
class World:
    """One repository, and what its users were told."""

    store: MemoryStore = field(default_factory=MemoryStore)
    told: dict[int, int] = field(default_factory=dict)
    tags: dict[str, set[int]] = field(default_factory=dict)

    def begin(self) -> None:
        self.store.files = dict(beginning())
        self.told = {seed: seed for seed in range(3)}

    # What somebody may do, each with a repository object of his own.

    def save(self, store: Any, seed: int) -> None:
        self.told[Repository(store).commit(tree_of(content(seed)), step=seed).number] = seed

    def go_on(self, store: Any, seed: int) -> None:
        """A job that continues its own last snapshot, or is told that another came between."""
        repository = Repository(store)
        with contextlib.suppress(ConflictError):
            snapshot = repository.commit(tree_of(content(seed)), step=seed, parent=2, newest=2)
            self.told[snapshot.number] = seed
            assert snapshot.number == 3

    def tag(self, store: Any, seed: int) -> None:
        with contextlib.suppress(ExistsError, NotFoundError):
            self.tags.setdefault("release", set()).add(Repository(store).tag(f"id:{seed % 3}", "release").number)

    def prune(self, store: Any, seed: int) -> None:
        Repository(store).prune([KeepLast(1 + seed % 2)], dry_run=False)
        self.collect(store, seed)

    def collect(self, store: Any, _seed: int) -> None:
        with contextlib.suppress(ConflictError):
            Repository(store).collect()

    def delete(self, store: Any, seed: int) -> None:
        with contextlib.suppress(UnsupportedError, NotFoundError):
            Repository(store).delete(f"id:{seed % 3}")

    def read(self, store: Any, _seed: int) -> None:
        repository = Repository(store)
        with repository.reading():
            check(repository, repository.resolve("latest"), None)

    def verify(self, store: Any, _seed: int) -> None:
        assert Repository(store).verify().ok

    def look(self) -> None:
        """What must hold when all is over."""
        repository = Repository(self.store)
        snapshots, damaged = repository.history()
        assert damaged == {}
        assert list(snapshots) == list(range(len(snapshots)))
        assert set(snapshots) == set(self.told)
        assert not snapshots[max(snapshots)].pruned
        for number, seed in self.told.items():
            if not snapshots[number].pruned:
                check(repository, snapshots[number], seed)
        holders = [number for number, snapshot in snapshots.items() if "release" in snapshot.tags]
        assert len(holders) <= 1
        assert not any(snapshots[number].pruned for number in holders)
        assert self.tags.get("release", set()) <= set(holders)
        repository.collect()
        assert repository.verify().ok
        assert len(self.store.list("manifests")) == len(repository.snapshots)


def run(rng: Random, *, locks: bool = True) -> int:
    """One schedule; returns its length."""
    world, schedule = World(), Schedule(rng)
    world.begin()
    store = ScheduledStore(world.store, schedule, locks=locks)
    kinds: list[Callable[[Any, int], None]] = [
        world.save, world.go_on, world.tag, world.prune, world.collect, world.delete, world.read, world.verify
    ]  # fmt: skip
    chosen = [world.save, world.prune, *rng.choices(kinds, [3, 2, 2, 2, 2, 1, 2, 1], k=2)]
    tasks = [lambda do=do, seed=10 + n: do(store, seed) for n, do in enumerate(chosen)]
    try:
        schedule.run(tasks)
        world.look()
    except BaseException as error:
        names = ", ".join(f"{n}: {do.__name__}" for n, do in enumerate(chosen))
        raise AssertionError(f"{names}\n" + "\n".join(schedule.trace)) from error
    return len(schedule.trace)


def test_nothing_is_lost_in_any_order(torture: Torture) -> None:
    budget = torture.budget(5_000, 100_000)
    steps = 0
    for number in range(budget):
        try:
            steps += run(Random(f"{torture.report.seed}/{number}"))
        except AssertionError as error:
            raise AssertionError(f"schedule {number}: {torture.replay}\n{error}") from error
    torture.record("Random schedules", budget, f"of 4 users of the real code on one repository, {steps:,} operations")


def test_collection_that_looks_before_it_deletes_is_caught(torture: Torture) -> None:
    """Check, then claim: without the lock a save loses the pack that it is about to name."""
    budget, caught = torture.budget(60, 3_000), 0
    for number in range(budget):
        try:
            run(Random(f"{torture.report.seed}/broken/{number}"), locks=False)
        except AssertionError as error:
            caught += isinstance(error.__cause__, CorruptionError | NotFoundError | AssertionError)
    assert caught
    torture.record(
        "Random schedules, broken on purpose", budget, "a collection without the lock", controls=f"{caught} times"
    )
