"""Repair sets damage aside, restores what other packs hold, and tells exactly what is lost; samples find damage too."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from tests.repository.damaging import blocks_of, flip
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository import Repository
from safepoint.repository.layout import manifest_file, pack_file, snapshot_file
from safepoint.store import MemoryStore

SAME = np.arange(4000, dtype=np.int64)


def leaves(step: int) -> dict[str, Any]:
    return {"model/same": SAME, "model/w": np.full((100, 10), step, np.float32), "step": step}


@pytest.fixture
def store() -> MemoryStore:
    """Three snapshots, each with packs of its own: the same tensor is held three times."""
    store = MemoryStore()
    for step in range(3):
        Repository(store).commit(tree_of(leaves(step)), step=step, parent=None)
    return store


def assert_whole(store: MemoryStore, numbers: range) -> None:
    for number in numbers:
        assert_same(load(Repository(store), f"id:{number}"), leaves(number))
    assert Repository(store).verify().ok


def test_nothing_to_repair(store: MemoryStore) -> None:
    before = dict(store.files)
    done = Repository(store).repair()
    assert (done.ok, done.restored, done.lost, done.whole) == (True, (), (), (0, 1, 2))
    assert store.files == before


def test_a_block_that_another_pack_holds_is_restored(store: MemoryStore) -> None:
    repository = Repository(store)
    for number in (0, 2):
        flip(store, blocks_of(repository, f"id:{number}", "model/same")[0])
    done = repository.repair()
    assert done.ok
    assert {(damage.name, damage.snapshots) for damage in done.restored} == {("model/same", (0,)), ("model/same", (2,))}
    assert done.whole == (0, 1, 2)
    assert_whole(store, range(3))
    repository.collect()
    assert len(store.list("packs")) == 3  # all read it in one of them now; they hold other tensors too
    assert_whole(store, range(3))


def test_what_is_lost_is_told_exactly_and_the_rest_is_whole(store: MemoryStore) -> None:
    repository = Repository(store)
    (block,) = blocks_of(repository, "id:1", "model/w")
    file = flip(store, block)
    flip(store, blocks_of(repository, "id:1", "model/same")[0])
    done = repository.repair()
    assert not done.ok
    (lost,) = done.lost
    assert (lost.file, lost.name, lost.span, lost.rows) == (file, "model/w", (0, 4000), (0, 100))
    assert lost.snapshots == (1,)
    assert [damage.name for damage in done.restored] == ["model/same"]
    assert done.whole == (0, 2)
    assert np.array_equal(
        repository.manifest(repository.resolve("id:1")).load(["model/same"]).leaves["model/same"].numpy(), SAME
    )
    again = repository.repair()
    assert (again.lost, again.restored) == ((lost,), ())
    repository.commit(tree_of(leaves(1)), step=9, parent=None)  # a save that has its bytes
    assert_whole(store, range(3))


def test_a_pruned_snapshots_pack_may_still_hold_it(store: MemoryStore) -> None:
    repository = Repository(store)
    repository.delete("id:0")
    repository.delete("id:1")
    flip(store, blocks_of(repository, "id:2", "model/same")[0])
    assert repository.repair().ok
    repository.collect()
    assert_whole(store, range(2, 3))


def test_a_pack_that_nothing_names_may_still_hold_it(store: MemoryStore) -> None:
    repository = Repository(store)
    for number in (0, 1):
        repository.delete(f"id:{number}")
        del store.files[manifest_file(repository.history()[0][number].manifest.id)]
    flip(store, blocks_of(repository, "id:2", "model/same")[0])
    flip(store, blocks_of(repository, "id:2", "model/w")[0])
    done = repository.repair()
    assert [damage.name for damage in done.lost] == ["model/w"]
    assert [damage.name for damage in done.restored] == ["model/same"]
    store.files["packs/" + "0" * 24 + ".safetensors"] = b"\xff" * 100  # a stranger's
    assert [damage.name for damage in repository.repair().lost] == ["model/w"]


def test_a_lost_or_cut_pack_with_a_damaged_header_is_left(store: MemoryStore) -> None:
    repository = Repository(store)
    (same,) = blocks_of(repository, "id:0", "model/same")
    data = bytearray(store.files[pack_file(same.pack)])
    data[9] ^= 1
    store.files[pack_file(same.pack)] = bytes(data)
    assert not repository.verify().ok
    done = repository.repair()
    assert done.ok
    assert len(done.restored) == 1
    assert_whole(store, range(3))
    assert repository.collect() > 0
    assert pack_file(same.pack) not in store.files
    (cut,) = blocks_of(repository, "id:1", "model/same")
    store.files[pack_file(cut.pack)] = store.files[pack_file(cut.pack)][:-2000]  # its last tensor is `w`
    done = repository.repair()
    assert {damage.name for damage in done.lost} == {"model/w"}
    assert done.whole == (0, 2)
    del store.files[pack_file(blocks_of(repository, "id:2", "model/w")[0].pack)]
    done = repository.repair()
    assert {(damage.name, damage.snapshots) for damage in done.lost} == {("model/w", (1,)), ("model/w", (2,))}
    assert done.whole == (0,)
    assert np.array_equal(load_one(repository, "id:2", "model/same"), SAME)


def load_one(repository: Repository, reference: str, name: str) -> Any:
    return repository.manifest(repository.resolve(reference)).load([name]).leaves[name].numpy()  # type: ignore[union-attr]


def test_what_healing_wrote_is_restored_from_where_it_was_before(store: MemoryStore) -> None:
    """A block that was marked by mistake is right in its first place, when its second one fails."""
    repository = Repository(store)
    (first,) = blocks_of(repository, "id:2", "model/w")
    flip(store, first)
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    (second,) = blocks_of(repository, "id:2", "model/w")
    assert second.pack != first.pack
    flip(store, first)
    flip(store, second)
    assert not Repository(store).verify().ok
    assert repository.repair().ok
    for number in range(3):
        assert_same(load(Repository(store), f"id:{number}"), leaves(number))
    assert_same(load(Repository(store), "id:3"), leaves(2))


def test_damaged_documents_are_told_or_replaced(store: MemoryStore) -> None:
    repository = Repository(store)
    flip(store, blocks_of(repository, "id:1", "model/same")[0])
    assert repository.repair().ok
    moved = [f"moved/{name}" for name in store.list("moved")]
    store.files[moved[-1]] = store.files[moved[-1]][:-1]
    fresh = Repository(store)
    done = fresh.repair()
    assert done.ok
    assert moved[-1] in {damage.file for damage in done.restored}
    assert_whole(store, range(3))
    fresh.collect()
    assert_whole(store, range(3))
    manifest = manifest_file(fresh.resolve("id:0").manifest.id)
    store.files[manifest] = store.files[manifest][:-1]
    del store.files[snapshot_file(1)]
    done = Repository(store).repair()
    assert {(damage.file, damage.snapshots) for damage in done.lost} == {(manifest, (0,)), (snapshot_file(1), (1,))}
    assert done.whole == (2,)


def test_a_sample_reads_about_its_part_and_finds_damage_in_time(store: MemoryStore) -> None:
    repository = Repository(store)
    many = {f"w{index:03}": np.random.default_rng(index).integers(0, 255, 1000, np.uint8) for index in range(400)}
    repository.commit(tree_of(many), step=9, parent=None)
    result = repository.verify("id:3", sample=0.05)
    assert (result.ok, result.whole, result.sample) == (True, (), 0.05)
    assert 20_000 <= result.num_bytes <= 21_000
    assert repository.resolve("id:3").verified is None
    name = f"w{random.randrange(400):03}"
    flip(store, blocks_of(repository, "id:3", name)[0])
    for _ in range(1000):
        result = repository.verify("id:3", sample=0.05)
        if not result.ok:
            break
    (damage,) = result.damage
    assert (damage.name, damage.rows) == (name, (0, 1000))
    assert repository._documents.places.moved().damaged  # so the next save heals it
    assert repository.verify("id:3", sample=1).num_bytes == 400_000
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(UnsupportedError, match="sample"):
            repository.verify(sample=wrong)


def test_live_objects_that_hold_what_was_lost_heal_it(store: MemoryStore) -> None:
    repository = Repository(store)
    snapshot = repository.resolve("id:1")
    flip(store, blocks_of(repository, "id:1", "model/w")[0])
    tree = tree_of(leaves(1))
    assert not repository.heal(snapshot, tree_of(leaves(0)).tensors.values())
    with pytest.raises(CorruptionError):
        load(repository, "id:1")
    assert repository.heal(snapshot, tree.tensors.values())
    assert not repository.heal(snapshot, tree.tensors.values())  # nothing is damaged any more
    assert_whole(store, range(3))
