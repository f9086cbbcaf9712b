"""A long history is looked through as seldom as possible: what a save asks of it does not grow with it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tests.repository.trees import tree_of

from safepoint.errors import ConflictError
from safepoint.repository import Repository
from safepoint.store import MemoryStore
from safepoint.testing.faults import FaultyStore


def save(repository: Repository, step: int, **options: Any) -> None:
    repository.commit(tree_of({"w": np.full(2000, step, np.float64)}), step=step, **options)


def listed(store: FaultyStore, start: int) -> Counter[str]:
    return Counter(what for what in store.operations[start:] if what.startswith("list "))


class Newest:
    def keep(self, history: Any, now: Any) -> set[int]:
        return {history[-1].number}


def test_only_the_first_save_of_a_process_lists_the_history() -> None:
    store = FaultyStore(MemoryStore())
    repository = Repository(store)
    for step in range(4):
        start = len(store.operations)
        save(repository, step, newest=step - 1 if step else None)
        assert listed(store, start)["list snapshots"] == (step < 2)  # there was none that could be known
        assert listed(store, start)["list marks"] == 0


def test_what_others_committed_is_found_without_listing() -> None:
    store = MemoryStore()
    repository, other = Repository(store), Repository(store)
    save(repository, 0)
    save(repository, 1)
    save(other, 2)
    save(other, 3)
    save(repository, 4)
    assert [(s.number, s.parent) for s in repository.snapshots] == [(0, None), (1, 0), (2, 1), (3, 2), (4, 3)]


def test_a_history_whose_newest_file_is_lost_is_listed_again() -> None:
    store = MemoryStore()
    repository = Repository(store)
    for step in range(3):
        save(repository, step)
    del store.files["snapshots/00000002.json"]
    save(repository, 9)
    assert [(s.number, s.step) for s in Repository(store).snapshots] == [(0, 0), (1, 1), (2, 9)]


def test_pruning_lists_each_folder_once_however_many_are_pruned() -> None:
    store = FaultyStore(MemoryStore())
    repository = Repository(store)
    for step in range(8):
        save(repository, step)
    start = len(store.operations)
    assert len(repository.prune([Newest()], dry_run=False)) == 7
    assert listed(store, start)["list snapshots"] == listed(store, start)["list marks"] == 1


def test_pruning_notices_a_mark_that_came_in_between() -> None:
    store = MemoryStore()
    repository = Repository(store)
    for step in range(3):
        save(repository, step)

    class TagsMeanwhile:
        def keep(self, history: Any, now: Any) -> set[int]:
            Repository(store).tag("1", "kept")
            return set()

    assert [snapshot.number for snapshot in repository.prune([TagsMeanwhile()], dry_run=False)] == [0]
    assert [snapshot.number for snapshot in repository.snapshots] == [1, 2]


def test_who_commits_while_another_writes_is_noticed_at_the_commit() -> None:
    """The history is listed before the bytes are written; the number that was taken meanwhile tells."""
    store = MemoryStore()
    repository = Repository(store)
    save(repository, 0)

    def intrude(done: int, total: int) -> None:
        if len(Repository(store).snapshots) == 1:
            save(Repository(store), 100)

    with pytest.raises(ConflictError, match="in between"):
        save(repository, 1, newest=0, progress=intrude)
    assert [snapshot.step for snapshot in Repository(store).snapshots] == [0, 100]
    assert len(store.list("packs")) == len(store.list("manifests")) == 2
    save(repository, 2)
    assert [snapshot.number for snapshot in Repository(store).snapshots] == [0, 1, 2]
