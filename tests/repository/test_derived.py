"""`derived/`: numbers by key, many files made one, nothing believed that does not fit its digest."""

from __future__ import annotations

import numpy as np

from safepoint.repository import Derived
from safepoint.store import MemoryStore


def row(value: float) -> np.ndarray:
    return np.full(3, value)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_what_was_added_is_known_to_the_next_reader() -> None:
    store = MemoryStore()
    Derived(store).add({key(1): row(0.5)}, width=3)
    Derived(store).add({key(2): row(np.inf)}, width=3)
    Derived(store).add({key(1): np.zeros(2)}, width=2)
    found = Derived(store).known(3)
    assert {k: list(v) for k, v in found.items()} == {key(1): [0.5] * 3, key(2): [np.inf] * 3}
    assert list(Derived(store).known(2)) == [key(1)]


def test_many_files_become_one_that_has_all() -> None:
    store = MemoryStore()
    for number in range(40):
        derived = Derived(store)
        derived.known(3)
        derived.add({key(number): row(number)}, width=3)
    assert len(store.list("derived")) <= 16
    assert {k: v[0] for k, v in Derived(store).known(3).items()} == {key(n): n for n in range(40)}


def test_a_file_that_was_changed_or_cut_is_ignored() -> None:
    store = MemoryStore()
    Derived(store).add({key(1): row(1)}, width=3)
    (name,) = store.list("derived")
    whole = store.read(f"derived/{name}")
    for number, data in enumerate([b"", whole[:-1], whole + b"0", whole[:50], whole[:-9] + b"x" + whole[-8:]]):
        store.delete(f"derived/{name}")
        name = f"3-{number}.numbers"
        store.create(f"derived/{name}", data)
        assert Derived(store).known(3) == {}


def test_collection_at_work_is_not_waited_for() -> None:
    store = MemoryStore()
    with store.lock(exclusive=True):
        Derived(store).add({key(1): row(1)}, width=3)
    assert store.list("derived") == []
