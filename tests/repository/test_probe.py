"""A store that does not keep its promises is refused when a repository begins in it, by a message that says why."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.repository.trees import load, tree_of

from safepoint.errors import ConflictError, ExistsError, NotFoundError, StoreError
from safepoint.repository import Repository
from safepoint.store import LocalStore, MemoryStore
from safepoint.testing.faults import FaultyStore, SimulatedDeath


def lying(**methods: Callable[..., Any]) -> MemoryStore:
    store = MemoryStore()
    for name, method in methods.items():
        setattr(store, name, functools.partial(method, store, getattr(store, name)))
    return store


def overwrite(store: MemoryStore, honest: Any, name: str, data: bytes) -> None:
    store.files.pop(name, None)
    honest(name, data)


def cut(store: MemoryStore, honest: Any, name: str, data: bytes) -> None:
    honest(name, data[:-1] if name.endswith("safepoint.json") else data)


def shifted(store: MemoryStore, honest: Any, name: str, offset: int, data: Any) -> None:
    honest(name, max(0, offset - 1), data)


def padded(store: MemoryStore, honest: Any, name: str, offset: int, data: Any) -> None:
    found = store.files[name][offset : offset + len(data)]
    data[:] = np.frombuffer(found.ljust(len(data), b"\0"), np.uint8)


def unlisted(store: MemoryStore, honest: Any, folder: str) -> list[str]:
    return []


def undeleted(store: MemoryStore, honest: Any, name: str) -> None:
    if name == "safepoint.json":
        honest(name)


@contextmanager
def unlocked(store: MemoryStore, honest: Any, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
    yield


LIARS = {
    "it overwrites": {"create": overwrite},
    "it does not give back": {"create": cut},
    "ranges of a file": {"read_into": shifted},
    "past the end": {"read_into": padded},
    "is not listed": {"list": unlisted},
    "after it was deleted": {"delete": undeleted},
    "locks do not exclude": {"lock": unlocked},
}


@pytest.mark.parametrize("why", LIARS)
def test_a_store_that_lies_is_refused(why: str) -> None:
    store = lying(**LIARS[why])
    with pytest.raises(StoreError, match="cannot hold a repository") as caught:
        Repository(store).commit(tree_of({"w": np.ones(3)}))
    assert why in str(caught.value)
    with pytest.raises(NotFoundError):
        _ = Repository(store).id


def test_honest_stores_pass_and_nothing_is_left(tmp_path: Path) -> None:
    for store in (MemoryStore(), LocalStore(tmp_path / "r")):
        repository = Repository(store)
        repository.commit(tree_of({"w": np.ones(3)}))
        assert len(store.list("manifests")) == 1
        assert repository.collect() == 0


def test_a_founder_that_dies_anywhere_leaves_a_place_to_go_on_in() -> None:
    counting = FaultyStore(MemoryStore())
    Repository(counting).commit(tree_of({"w": np.ones(3)}))
    for at in range(len(counting.operations)):
        store = MemoryStore()
        with contextlib.suppress(SimulatedDeath):
            Repository(FaultyStore(store, at=at)).commit(tree_of({"w": np.zeros(3)}))
        repository = Repository(store)
        repository.commit(tree_of({"w": np.ones(3)}))
        repository.collect()
        assert load(repository)["w"].tolist() == [1, 1, 1]
        assert len(store.list("manifests")) == len(repository.snapshots)


def test_two_founders_at_once_make_one_repository() -> None:
    store = MemoryStore()

    def other(_store: MemoryStore, honest: Any, name: str, data: bytes) -> None:
        if name == "safepoint.json" and name not in store.files:
            honest(name, data)  # another process, between our look and our creation
            raise ExistsError("taken")
        honest(name, data)

    honest = store.create
    store.create = lambda name, data: other(store, honest, name, data)  # type: ignore[method-assign]
    Repository(store).commit(tree_of({"w": np.ones(3)}))
    assert load(Repository(store))["w"].tolist() == [1, 1, 1]


def test_a_collector_that_runs_meanwhile_disturbs_nobody() -> None:
    store = MemoryStore()
    create = store.create

    def collected(name: str, data: bytes) -> None:
        create(name, data)
        if name.startswith("manifests/") and not store.list("snapshots"):
            with pytest.raises(ConflictError):
                Repository(store).collect()

    store.create = collected  # type: ignore[method-assign]
    Repository(store).commit(tree_of({"w": np.ones(3)}))
    assert Repository(store).collect() == 0
