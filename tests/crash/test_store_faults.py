"""A repository cut short at its n-th store operation, for every n: by death, by a full disk, by a failing one."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from tests.crash.scenario import LIFE, Known, check_survival, live, save, tree_of

from safepoint.errors import SafepointError, StoreError
from safepoint.repository import Repository
from safepoint.store import MemoryStore
from safepoint.testing.faults import Fault, FaultyStore

LOOKING = {"exists", "list", "read", "read_into", "size"}


@contextmanager
def same_names() -> Iterator[None]:
    """Lives under it are the same to the last operation: which blocks are read back depends on the names of packs."""
    names = random.Random(0)
    with mock.patch.object(secrets, "token_hex", lambda length: names.randbytes(length).hex()):
        yield


def operations_of_a_life() -> list[str]:
    store = FaultyStore(MemoryStore())
    live(store, LIFE)
    return store.operations


def points() -> Iterator[int]:
    return iter(range(len(operations_of_a_life())))


def test_a_whole_life_survives_itself() -> None:
    store = MemoryStore()
    check_survival(store, live(store, LIFE))


def test_the_scenario_meets_every_kind_of_operation() -> None:
    kinds = {operation.split()[0] for operation in operations_of_a_life()}
    assert kinds >= {"create", "sink", "write", "reserve", "commit", "delete", "lock", "list", "read", "size", "clean"}
    folders = {operation.split()[1].split("/")[0] for operation in operations_of_a_life() if "/" in operation}
    assert folders == {"packs", "manifests", "snapshots", "marks"}


def test_death_at_any_operation_loses_nothing_acknowledged() -> None:
    # Dying after the n-th is dying before the next; dying before one that only looks is dying before what follows it.
    with same_names():
        operations = operations_of_a_life()
    points = [at for at, what in enumerate(operations) if what.split()[0] not in LOOKING]
    assert len(points) > 80
    for at in points:
        store = MemoryStore()
        faulty = FaultyStore(store, at=at)
        with same_names():
            known = live(faulty, LIFE)
        assert faulty.is_dead
        check_survival(store, known)


@pytest.mark.parametrize(
    "fault, lasting", [("no space", False), ("input/output error", True)], ids=["no space once", "broken for ever"]
)
def test_a_refusal_at_any_operation_is_told_and_loses_nothing(fault: Fault, *, lasting: bool) -> None:
    for at in points():
        store = MemoryStore()
        faulty = FaultyStore(store, at=at, fault=fault, lasting=lasting)
        check_survival(store, live_with_errors(faulty))


def live_with_errors(store: FaultyStore) -> Known:
    """A program that goes on after an error; a save that was refused may still have become visible."""
    known = Known()
    repository = Repository(store)
    for step in LIFE:
        try:
            step(repository, known)
        except SafepointError:
            if known.attempted is not None:
                number = newest_in(store)
                if number is not None and number not in known.content:
                    known.content[number] = known.attempted
                known.attempted = None
    return known


def newest_in(store: FaultyStore) -> int | None:
    snapshots = Repository(store._store).history()[0] if Repository(store._store).exists else {}
    return max(snapshots, default=None)


def test_a_refused_save_takes_its_files_back() -> None:
    counting = FaultyStore(MemoryStore())
    live(counting, [save(0), save(1)])
    first_of_second_save = counting.operations.index("create snapshots/00000000.json") + 1
    last = counting.operations.index("create snapshots/00000001.json") + 1
    for at in range(first_of_second_save, last):
        store = MemoryStore()
        live(store, [save(0)])
        before = set(store.files)
        shift = FaultyStore(store, at=at - first_of_second_save, fault="no space")
        repository = Repository(shift)
        known = Known()
        try:
            save(1)(repository, known)
        except StoreError:
            assert set(store.files) == before


def test_death_between_the_blocks_of_a_large_tensor_loses_nothing() -> None:
    large = np.random.default_rng(0).integers(0, 255, 40 << 20, dtype=np.uint8)
    base = MemoryStore()
    live(base, [save(0)])
    counting = FaultyStore(base)
    Repository(counting).commit(tree_of({"large": large}))
    writing = [at for at, what in enumerate(counting.operations) if what.split()[0] in {"write", "reserve", "commit"}]
    assert len(writing) >= 6
    for at in writing:
        store = MemoryStore()
        known = live(store, [save(0)])

        def save_large(repository: Repository, _known: Known) -> None:
            repository.commit(tree_of({"large": large}))

        live(FaultyStore(store, at=at), [save_large])
        assert Repository(store).history()[0].keys() == {0}
        check_survival(store, known)
