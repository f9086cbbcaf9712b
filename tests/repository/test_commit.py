"""A commit that somebody else comes before, one whose parent cannot be read, and one that finds the disk full."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
from tests.repository.trees import tree_of

from safepoint.errors import ConflictError, StoreError, UnsupportedError
from safepoint.repository import Repository, commit
from safepoint.repository.layout import snapshot_file
from safepoint.store import MemoryStore


class Interrupted(MemoryStore):
    """Somebody does something just before a snapshot's file is created."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Callable[[], None] | None = None

    def create(self, name: str, data: bytes) -> None:
        first, self.first = (self.first, None) if name.startswith("snapshots/") else (None, self.first)
        if first is not None:
            first()
        super().create(name, data)


def tree(step: int):
    return tree_of({"w": np.full(100, step)})


def files_of(store: MemoryStore) -> set[str]:
    return {name for name in store.files if name.startswith(("packs/", "manifests/"))}


@pytest.fixture
def store() -> Interrupted:
    store = Interrupted()
    Repository(store).commit(tree(0))
    return store


def test_who_expects_to_be_next_conflicts_and_leaves_nothing(store: Interrupted) -> None:
    store.first = lambda: Repository(store).commit(tree(7)) and None
    with pytest.raises(ConflictError, match="another writer saved") as caught:
        Repository(store).commit(tree(1), newest=0)
    assert (caught.value.expected, caught.value.found) == ("snapshot 0 to be the newest", "snapshot 1")
    assert [s.number for s in Repository(store).snapshots] == [0, 1]
    assert len(files_of(store)) == 4  # of the two that are there


def test_who_does_not_takes_the_next_number(store: Interrupted) -> None:
    store.first = lambda: Repository(store).commit(tree(7)) and None
    snapshot = Repository(store).commit(tree(1))
    assert (snapshot.number, snapshot.parent) == (2, 0)
    leaves = Repository(store).manifest(snapshot).load(["w"]).leaves
    assert leaves["w"].numpy().tolist() == [1] * 100


@pytest.mark.parametrize(("newest", "expected"), [(None, "no snapshot yet"), (5, "snapshot 5 to be the newest")])
def test_a_conflict_that_is_there_from_the_beginning(newest: int | None, expected: str, store: Interrupted) -> None:
    before = dict(store.files)
    with pytest.raises(ConflictError) as caught:
        Repository(store).commit(tree(1), newest=newest)
    assert (caught.value.expected, caught.value.found) == (expected, "snapshot 0")
    assert store.files == before
    with pytest.raises(ConflictError) as caught:
        Repository(MemoryStore()).commit(tree(1), newest=3)
    assert caught.value.found == "none"


def test_the_step_after_a_parent(store: Interrupted) -> None:
    assert Repository(store).commit(tree(1), step=41).step == 41
    assert Repository(store).commit(tree(2)).step == 42
    assert Repository(store).commit(tree(3), parent=None).step == 0
    store.files[snapshot_file(1)] = b"damaged"
    assert Repository(store).commit(tree(4), parent=1).step == 2


@pytest.mark.parametrize("listed", ["listed", "not listed"])
def test_on_a_full_disk_files_go_only_if_the_snapshot_is_surely_not_there(
    listed: str, store: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        if listed == "not listed":
            monkeypatch.setattr(store, "list", lambda folder: (_ for _ in ()).throw(StoreError("cannot list")))
        raise StoreError("no room", error=OSError(errno.ENOSPC, "full"))

    before = files_of(store)
    store.first = full
    repository = Repository(store)
    assert repository.snapshots
    with pytest.raises(StoreError, match="no room"):
        repository.commit(tree(1))
    monkeypatch.undo()
    assert len(files_of(store) - before) == (0 if listed == "listed" else 2)
    assert [s.number for s in Repository(store).snapshots] == [0]


def test_a_manifest_has_a_largest_size(store: Interrupted, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Repository(store).commit(tree(1)).manifest.num_bytes
    before = files_of(store)
    monkeypatch.setattr(commit, "MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(UnsupportedError, match="the manifest of this state is too long") as caught:
        Repository(store).commit(tree(2))
    assert (caught.value.expected, caught.value.found) == (f"at most {size - 1:,} bytes", f"{size:,} bytes")
    assert files_of(store) == before
    monkeypatch.setattr(commit, "MAX_MANIFEST_BYTES", size)
    assert Repository(store).commit(tree(3)).manifest.num_bytes == size
