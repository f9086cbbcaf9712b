"""Compaction brings back what is dead inside packs; snapshots, readers and running saves do not notice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.crash.processes import Child
from tests.repository.damaging import blocks_of, flip
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import ConflictError, CorruptionError, StoreError
from safepoint.repository import Repository
from safepoint.store import LocalStore, MemoryStore, Store
from safepoint.testing.faults import Fault, FaultyStore, SimulatedDeath

SIZES = {"x": 40_000, "xn": 60_000, "y": 80_000, "yn": 120_000, "z": 10}
KEPT = np.random.default_rng(0).integers(0, 255, 40_000, np.uint8)


def leaves(step: int) -> dict[str, Any]:
    noise = np.random.default_rng(step + 1).integers(0, 255, 100_000, np.uint8)
    return {"kept/a": KEPT, "kept/b": KEPT[:9_999] ^ 1, "noise": noise, "step": step}


def worn(store: Store) -> Repository:
    """Snapshots 3 and 4, and packs of both; the one of snapshot 0 is needed for a third of it."""
    repository = Repository(store)
    for step in range(5):
        repository.commit(tree_of(leaves(step)), step=step)
    repository.delete("id:0")
    repository.delete("id:1")
    repository.delete("id:2")
    repository.collect()
    return repository


def assert_there(store: Store, numbers: tuple[int, ...] = (3, 4)) -> None:
    fresh = Repository(store)
    for number in numbers:
        assert_same(load(fresh, f"id:{number}"), leaves(number))
    assert fresh.verify().ok


def copy_of(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    copy.files = dict(store.files)
    return copy


def size(store: MemoryStore) -> int:
    return sum(len(data) for name, data in store.files.items() if name.startswith("packs/"))


def test_space_of_dead_blocks_comes_back_and_nothing_else_changes() -> None:
    store = MemoryStore()
    repository = worn(store)
    before, manifests = size(store), {n: d for n, d in store.files.items() if n.startswith(("manif", "snap", "marks"))}
    done = repository.compact()
    assert (done.packs, done.moved_bytes) == (1, 49_999)
    assert done.freed_bytes is not None
    assert before - size(store) >= 100_000
    assert manifests.items() <= store.files.items()
    assert_there(store)
    assert repository.compact().packs == 0
    repository.commit(tree_of(leaves(5)), step=5)  # refers to the new place
    assert_there(store, (3, 4, 5))
    assert blocks_of(repository, "id:5", "kept/a") == blocks_of(repository, "id:3", "kept/a")
    repository.delete("id:3")
    repository.collect()
    assert_there(store, (4, 5))
    assert Repository(store).repair().ok


def test_packs_that_are_mostly_alive_are_left() -> None:
    store = MemoryStore()
    repository = Repository(store)
    for step in range(3):
        repository.commit(tree_of(leaves(step)), step=step)
    before = dict(store.files)
    assert (repository.compact().packs, store.files) == (0, before)


def test_what_moved_moves_on_and_old_manifests_still_lead_there() -> None:
    store = MemoryStore()
    repository = Repository(store)
    rng = np.random.default_rng(0)
    data = {name: rng.integers(0, 255, size, np.uint8) for name, size in SIZES.items()}
    for names, parent in [("x xn", None), ("x", 0), ("y yn", None), ("y", 2), ("z", None)]:
        repository.commit(tree_of({name: data[name] for name in names.split()}), parent=parent)
    (block,) = repository.manifest(repository.resolve("id:1")).stored["x"].blocks
    repository.delete("id:0")
    repository.delete("id:2")
    assert repository.compact().packs == 2
    repository.delete("id:3")
    assert repository.compact().packs == 1
    way = repository._documents.places.moved().way((block.pack, block.offset, block.length))
    assert len({pack for pack, _, _ in way}) == 3
    assert_same(load(Repository(store), "id:1"), {"x": data["x"]})
    assert Repository(store).verify().ok
    assert len(store.list("packs")) == 2
    assert repository.collect() == 0
    repository.delete("id:1")
    repository.collect()
    assert (len(store.list("packs")), store.list("moved")) == (1, [])


def test_a_death_or_refusal_anywhere_loses_nothing() -> None:
    base = MemoryStore()
    worn(base)
    counting = FaultyStore(copy_of(base))
    Repository(counting).compact()
    changing = {"create", "sink", "write", "reserve", "commit", "delete", "clean"}
    faults: list[Fault] = ["dies before", "no space"]
    for fault in faults:
        for at, what in enumerate(counting.operations):
            if what.split()[0] not in changing:
                continue  # dying before one that only looks is dying before the next
            store = copy_of(base)
            with contextlib.suppress(SimulatedDeath, StoreError):
                Repository(FaultyStore(store, at=at, fault=fault)).compact()
            assert_there(store)
            repository = Repository(store)
            repository.compact()
            repository.collect()
            assert_there(store)
            assert len(store.list("packs")) == 3
            assert repository.collect() == 0


def test_damage_stops_it_and_costs_nothing() -> None:
    store = MemoryStore()
    repository = worn(store)
    flip(store, blocks_of(repository, "id:3", "kept/a")[0])
    with pytest.raises(CorruptionError):
        repository.compact()
    repository.verify()
    repository.commit(tree_of(leaves(5)), step=5)
    repository.compact()
    assert_there(store, (3, 4, 5))


def test_while_somebody_reads_the_old_packs_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "r")
    repository = worn(store)
    reader = Repository(store)
    with reader.reading():
        manifest = reader.manifest(reader.resolve("id:3"))
        before = set(store.list("packs"))
        assert repository.compact().freed_bytes is None
        assert before < set(store.list("packs"))
        assert np.array_equal(manifest.load(["kept/a"]).leaves["kept/a"].numpy(), KEPT)  # type: ignore[union-attr]
    assert repository.collect() > 100_000
    assert np.array_equal(manifest.tree.tensors["kept/a"].numpy(), KEPT)  # opened before, read where it is now
    assert_there(store)


def test_a_save_that_runs_meanwhile_keeps_what_it_refers_to() -> None:
    """Its parent is pruned and its parent's blocks are not moved: the pack stays, because the new snapshot names it."""
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(tree_of(leaves(0)), step=0)
    repository.commit(tree_of(leaves(1)), step=1, parent=None)

    class Meddler:
        """Prunes the parent and compacts when the save's manifest is written."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def create(self, name: str, data: bytes) -> None:
            if name.startswith("manifests/"):
                other = Repository(store)
                other.delete("id:0")
                other.compact()
                with pytest.raises(ConflictError):
                    other.collect()
            store.create(name, data)

    meddler: Any = Meddler()
    Repository(meddler).commit(tree_of(leaves(2)), step=2, parent=0)
    Repository(store).collect()
    assert_there(store, (1, 2))


def test_processes_save_read_and_compact_at_once(tmp_path: Path) -> None:
    root = tmp_path / "r"
    Repository(root).commit(tree_of(leaves(0)), step=0)

    def write(say: Any) -> None:
        repository = Repository(root)
        for step in range(1, 25):
            say(repository.commit(tree_of(leaves(step)), step=step).number)
            if step > 3:
                repository.delete(f"id:{step - 3}")

    writer = Child(write)
    stop = threading.Event()

    def read() -> None:
        repository = Repository(root)
        with repository.reading():
            snapshot = repository.resolve()
            assert_same(load(repository, snapshot), leaves(snapshot.step))

    def again_and_again(work: Callable[[], object]) -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(again_and_again, work) for work in (read, lambda: Repository(root).compact())]
        code, said = writer.wait()
        stop.set()
        for future in running:
            future.result()
    assert (code, len(said)) == (0, 24)
    Repository(root).compact()
    fresh = Repository(root)
    for snapshot in fresh.snapshots:
        assert_same(load(fresh, snapshot), leaves(snapshot.step))
    assert fresh.verify().ok
