"""A damaged block is marked, never used again, and written again by the next save that has its bytes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.repository.damaging import blocks_of, flip
from tests.repository.trees import assert_same, load, tree_of

from safepoint.codec import seal
from safepoint.errors import CorruptionError, StoreError
from safepoint.repository import Repository
from safepoint.repository.healing import CYCLE, due_after, turn_of
from safepoint.store import LocalStore, MemoryStore
from safepoint.testing.faults import Fault, FaultyStore, SimulatedDeath

BACKBONE = np.random.default_rng(0).standard_normal((500, 10))


def leaves(step: int) -> dict[str, Any]:
    return {
        "backbone/w": BACKBONE,
        "backbone/text": "long " * 20_000,
        "head/w": np.full(300, step, np.float32),
        "step": step,
    }


def saved(store: MemoryStore, count: int) -> Repository:
    repository = Repository(store)
    for step in range(count):
        repository.commit(tree_of(leaves(step)), step=step)
    return repository


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def marked(repository: Repository) -> set[tuple[str, int, int]]:
    return set(repository._documents.places.moved().damaged)


def assert_all_are_whole(store: MemoryStore, count: int) -> None:
    fresh = Repository(store)
    for step in range(count):
        assert_same(load(fresh, f"id:{step}"), leaves(step))
    assert fresh.verify().ok


def test_a_load_marks_what_it_finds_and_names_file_tensor_rows_and_bytes(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    file = flip(store, block)
    with pytest.raises(CorruptionError) as caught:
        load(repository)
    error = caught.value
    assert (error.file, error.name, error.span, error.rows) == (file, "backbone/w", (0, 40_000), (0, 500))
    assert "backbone/w, rows 0-500, bytes 0-40000, is damaged in packs/" in str(error)
    assert marked(Repository(store)) == {(block.pack, block.offset, block.length)}
    before = set(store.files)
    with pytest.raises(CorruptionError):
        load(repository)
    assert set(store.files) == before  # said once


@pytest.mark.parametrize("how", ["load", "check", "stream", "lazy", "verify", "part"])
def test_whoever_finds_it_the_next_save_heals_every_snapshot(store: MemoryStore, how: str) -> None:
    repository = saved(store, 4)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    flip(store, block)
    manifest = repository.manifest(repository.resolve())
    ways: dict[str, Callable[[], object]] = {
        "load": lambda: load(repository),
        "part": lambda: manifest.load(["backbone/w"]),
        "check": lambda: manifest.check(manifest.stored),
        "stream": manifest.stream(manifest.stored)["backbone/w"].read,
        "lazy": manifest.tree.tensors["backbone/w"].read,
    }
    if how == "verify":
        assert [d.name for d in repository.verify().damage] == ["backbone/w"]
    else:
        with pytest.raises(CorruptionError):
            ways[how]()
    assert marked(repository)
    repository.commit(tree_of(leaves(4)), step=4)
    assert not marked(repository)
    assert blocks_of(repository, "latest", "backbone/w") != (block,)
    assert_all_are_whole(store, 5)
    repository.collect()
    assert_all_are_whole(store, 5)


def test_a_large_value_is_healed_as_tensors_are(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/text")
    flip(store, block)
    assert not repository.verify().ok
    repository.commit(tree_of(leaves(2)), step=2)
    assert_all_are_whole(store, 3)


def test_a_frozen_backbone_with_a_flipped_bit_does_not_cost_the_run(store: MemoryStore) -> None:
    """Nobody loads or verifies: saves find it by themselves, within the cycle, and history is healed."""
    repository = saved(store, 3)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    flip(store, block)
    for step in range(3, 3 + CYCLE):
        repository.commit(tree_of(leaves(step)), step=step)
    assert blocks_of(repository, "latest", "backbone/w")[0].pack != block.pack
    assert_all_are_whole(store, 3 + CYCLE)


@pytest.mark.parametrize("restart", [False, True], ids=["one process", "a process a save"])
def test_no_block_is_relied_on_for_more_than_20_snapshots_unproven(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, *, restart: bool
) -> None:
    read: set[tuple[str, int]] = set()
    original = store.read_into

    def watched(name: str, offset: int, data: Any) -> None:
        original(name, offset, data)
        read.update((name, byte) for byte in (offset, offset + len(data) - 1))

    monkeypatch.setattr(store, "read_into", watched)
    repository = Repository(store)
    proven: dict[tuple[str, int, int], int] = {}
    for step in range(50):
        read.clear()
        repository.commit(tree_of(leaves(step)), step=step)
        for name in ("backbone/w", "backbone/text"):
            (block,) = blocks_of(repository, "latest", name)
            file = f"packs/{block.pack}.safetensors"
            inside = {b for f, b in read if f == file}
            whole = min(inside, default=1 << 60) <= block.offset < block.offset + block.length - 1 <= max(inside)
            place = (block.pack, block.offset, block.length)
            proven[place] = step if whole or place not in proven else proven[place]
            assert step - proven[place] <= 20
        if restart:
            repository = Repository(store)
    assert len(proven) == 2  # it was always the same blocks


def test_the_turns_of_a_lineage_leave_no_gap(store: MemoryStore) -> None:
    """Two lineages in one repository that take numbers in turn: each proves everything within the cycle."""
    repository = Repository(store)
    for step in range(2):
        repository.commit(tree_of(leaves(step)), step=step, parent=None)
    for step in range(2, 60):
        repository.commit(tree_of(leaves(step)), step=step, parent=step - 2)
    documents = repository._documents
    for start in (30, 31):
        turns: set[int] = set()
        for number in range(start, start + CYCLE, 2):
            turns |= due_after(documents, number)
        assert turns == set(range(CYCLE))
    assert due_after(documents, None) == frozenset()
    assert {turn_of(block) for n in range(60) for block in blocks_of(repository, f"id:{n}", "backbone/w")} <= turns


def test_damage_found_by_the_save_itself_never_enters_a_snapshot(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    flip(store, block)
    last = 1
    while not marked(repository) and blocks_of(repository, "latest", "backbone/w") == (block,):
        last += 1
        repository.commit(tree_of(leaves(last)), step=last)
    assert last <= 1 + CYCLE
    assert_same(load(Repository(store)), leaves(last))
    assert_all_are_whole(store, last + 1)


def test_what_was_healed_may_be_damaged_and_healed_again(store: MemoryStore) -> None:
    repository = saved(store, 2)
    for step in range(2, 6):
        (block,) = blocks_of(repository, "id:0", "backbone/w")
        flip(store, block)
        assert not repository.verify("id:0").ok
        repository.commit(tree_of(leaves(step)), step=step)
        assert_all_are_whole(store, step + 1)
        assert repository.collect() > 0
        assert_all_are_whole(store, step + 1)


def test_a_mark_of_something_that_is_right_is_taken_back(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    file = flip(store, block)
    assert not repository.verify().ok
    flip(store, block)
    assert marked(repository)
    assert_same(load(repository), leaves(1))  # a mark alone keeps nobody from reading
    assert repository.verify().ok
    assert not marked(repository)
    assert file in store.files


def test_a_snapshot_that_is_not_of_this_lineage_heals_too(store: MemoryStore) -> None:
    repository = saved(store, 2)
    flip(store, blocks_of(repository, "latest", "backbone/w")[0])
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2, parent=None)
    assert_all_are_whole(store, 3)


def test_healing_keeps_the_new_pack_when_the_snapshot_that_wrote_it_is_pruned(store: MemoryStore) -> None:
    repository = saved(store, 2)
    repository.tag("id:0", "kept")
    flip(store, blocks_of(repository, "latest", "backbone/w")[0])
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    repository.commit(tree_of({"other": np.ones(3)}), step=3)
    repository.delete("id:2")
    repository.delete("id:1")
    repository.collect()
    assert_same(load(Repository(store), "kept"), leaves(0))
    assert Repository(store).verify().ok


def test_what_moved_says_goes_with_the_packs_it_is_about(store: MemoryStore) -> None:
    repository = saved(store, 2)
    flip(store, blocks_of(repository, "latest", "backbone/w")[0])
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    assert len(store.list("moved")) == 2
    repository.collect()
    assert len(store.list("moved")) == 1  # the older one said less
    repository.commit(tree_of({"other": np.ones(3)}), step=3)
    repository.verify("id:3")
    for number in range(3):
        repository.delete(f"id:{number}")
    repository.collect()
    assert store.list("moved") == []


def test_a_healing_save_that_dies_or_is_refused_anywhere_loses_nothing() -> None:
    def prepared() -> MemoryStore:
        store = MemoryStore()
        repository = saved(store, 2)
        flip(store, blocks_of(repository, "latest", "backbone/w")[0])
        repository.verify()
        return store

    counting = FaultyStore(prepared())
    Repository(counting).commit(tree_of(leaves(2)), step=2)
    faults: list[Fault] = ["dies before", "no space"]
    for fault in faults:
        for at in range(len(counting.operations)):
            store = prepared()
            with contextlib.suppress(SimulatedDeath, StoreError):
                Repository(FaultyStore(store, at=at, fault=fault)).commit(tree_of(leaves(2)), step=2)
            fresh = Repository(store)
            count = len(fresh.snapshots)
            assert_same(load(fresh), leaves(2)) if count == 3 else None
            fresh.commit(tree_of(leaves(count)), step=count)
            fresh.collect()
            assert_all_are_whole(store, count + 1)


def test_a_damaged_document_of_moved_is_found_and_nothing_is_deleted(store: MemoryStore) -> None:
    repository = saved(store, 2)
    flip(store, blocks_of(repository, "latest", "backbone/w")[0])
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    file = f"moved/{store.list('moved')[-1]}"
    data = bytearray(store.files[file])
    for position in range(0, len(data), 7):
        data[position] ^= 1
        store.files[file] = bytes(data)
        fresh = Repository(store)
        with pytest.raises(CorruptionError):
            load(fresh, "id:0")
        assert_same(load(fresh), leaves(2))  # it never needed it
        assert file in {damage.file for damage in fresh.verify("id:2").damage}
        with pytest.raises(CorruptionError, match="nothing was deleted"):
            fresh.collect()
        data[position] ^= 1
    store.files[file] = bytes(data)
    for later in [name for name in store.files if name.startswith("moved/") and name > file]:
        del store.files[later]
    assert_all_are_whole(store, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"pack": "0" * 24}, {"repository": "0" * 32}, {"k": 7}, {"blocks": [[4096, 40_000, 9, 0]]},
        {"blocks": [[4096, 40_000, 0, 2**60]]}, {"blocks": [[-1, 0, 0, 0]]}, {"blocks": "x"}, {"packs": [1]},
        {"damaged": [[0, 1, 2]]}, {"packs": [{"id": "../../x"}]},
    ],
)  # fmt: skip
def test_a_hostile_document_of_moved_gives_no_wrong_byte(store: MemoryStore, change: dict[str, Any]) -> None:
    repository = saved(store, 2)
    flip(store, blocks_of(repository, "latest", "backbone/w")[0])
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    file = f"moved/{store.list('moved')[-1]}"
    body = json.loads(store.files[file])["body"] | change
    store.files[file] = seal(json.dumps(body).encode())
    fresh = Repository(store)
    assert_same(load(fresh, "id:2"), leaves(2))
    with pytest.raises(CorruptionError):
        load(fresh, "id:0")


def test_moves_in_a_circle_are_damage_and_not_a_hang(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    flip(store, block)
    repository.verify()
    repository.commit(tree_of(leaves(2)), step=2)
    file = f"moved/{store.list('moved')[-1]}"
    body = json.loads(store.files[file])["body"]
    there = body["packs"][body["blocks"][0][2]]["id"]
    back = {**body, "pack": there, "packs": [{**body["packs"][0], "id": block.pack}]}
    back["blocks"] = [[body["blocks"][0][3], block.length, 0, block.offset]]
    back["packs"][0]["num_bytes"] = 10**9
    store.files[f"moved/{there}-0.json"] = seal(json.dumps({**back, "k": 0}).encode())
    with pytest.raises(CorruptionError):
        load(Repository(store), "id:0")


def test_damage_is_told_where_nothing_can_be_written(store: MemoryStore) -> None:
    repository = saved(store, 2)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    flip(store, block)
    counting = FaultyStore(store)
    with pytest.raises(CorruptionError):
        load(Repository(counting))
    first = next(at for at, what in enumerate(counting.operations) if what.startswith("create moved/"))
    for name in [name for name in store.files if name.startswith("moved/")]:
        del store.files[name]
    with pytest.raises(CorruptionError):
        load(Repository(FaultyStore(store, at=first, fault="no space", lasting=True)))
    store.files["features/later.json"] = b"{}"
    with pytest.raises(CorruptionError):
        load(Repository(store))
    assert store.list("moved") == []


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    script = Path(__file__).parents[2] / "docs" / "reader.py"
    specification = importlib.util.spec_from_file_location("reader", script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_independent_reader_follows_moved_blocks(tmp_path: Path, reader: ModuleType) -> None:
    store = LocalStore(tmp_path / "r")
    repository = Repository(store)
    for step in range(2):
        repository.commit(tree_of(leaves(step)), step=step)
    (block,) = blocks_of(repository, "latest", "backbone/w")
    path = tmp_path / "r" / "packs" / f"{block.pack}.safetensors"
    data = bytearray(path.read_bytes())
    data[block.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="backbone/w is damaged"):
        reader.read_repository(tmp_path / "r")
    assert not repository.verify().ok
    repository.commit(tree_of(leaves(2)), step=2)
    for number in range(3):
        assert_same(reader.read_repository(tmp_path / "r", number), leaves(number))
