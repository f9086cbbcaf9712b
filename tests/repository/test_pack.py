"""The write engine: whatever the tensors, one valid safetensors file comes out, and the same bytes come back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import unicodedata
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from tests.repository.trees import assert_same, load, tree_of

from safepoint.codec import BLOCK_BYTES, checksum, parse_header
from safepoint.codec.header import Header
from safepoint.repository import Repository, pack
from safepoint.repository.stored import Block
from safepoint.store import MemoryStore
from safepoint.tree import DTYPES, StateTree, Tensor, TensorSpec, dtype_of


def save(leaves: dict[str, Any]) -> tuple[Repository, MemoryStore]:
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(tree_of(leaves))
    return repository, store


def headers(store: MemoryStore) -> list[Header]:
    """Parsed strictly: no gap, no overlap, nothing left over."""
    packs = [data for name, data in store.files.items() if name.startswith("packs/")]
    found = []
    for data in packs:
        length = int.from_bytes(data[:8], "little")
        found.append(parse_header(data[:8], data[8 : 8 + length], file="pack", file_bytes=len(data)))
    return found


def round_trip(leaves: dict[str, Any]) -> MemoryStore:
    repository, store = save(leaves)
    assert_same(load(repository), leaves)
    assert repository.verify().ok
    headers(store)
    return store


def test_a_state_without_tensors_writes_no_pack() -> None:
    assert round_trip({"step": 3, "name": "x"}).list("packs") == []
    assert round_trip({}).list("packs") == []


def test_empty_tensors_need_no_block_and_no_pack() -> None:
    store = round_trip({"a": np.zeros((0,), np.float32), "b": np.zeros((3, 0, 2), np.int8)})
    assert store.list("packs") == []


def test_empty_tensors_stand_beside_others() -> None:
    store = round_trip({"a": np.zeros((0, 4), np.float32), "b": np.ones(3), "c": np.zeros((0,), np.complex128)})
    assert {entry.name: entry.shape for entry in headers(store)[0].entries} == {"a": (0, 4), "b": (3,)}


def test_scalars_have_no_shape() -> None:
    store = round_trip({"a": np.array(1.5), "b": np.array(7, np.int16), "c": np.array(True)})
    assert {entry.shape for entry in headers(store)[0].entries} == {()}


@pytest.mark.parametrize(
    "num_bytes",
    [1, 4095, 4096, 4097, 8192, BLOCK_BYTES - 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES,
     2 * BLOCK_BYTES + 4096, 3 * BLOCK_BYTES + 17],
)  # fmt: skip
def test_sizes_around_pages_and_blocks(num_bytes: int) -> None:
    large = np.resize(np.random.default_rng(num_bytes).integers(0, 256, 1 << 20, np.uint8), num_bytes)
    large[:: 1 << 20] = np.arange(len(large[:: 1 << 20]))
    repository, store = save({"small": np.arange(5), "large": large, "last": np.ones(3, np.uint8)})
    stored = repository.manifest(repository.resolve()).stored["large"]
    assert [block.length for block in stored.blocks[:-1]] == [BLOCK_BYTES] * (len(stored.blocks) - 1)
    assert len(stored.blocks) == -(-num_bytes // BLOCK_BYTES)
    assert load(repository)["large"].tobytes() == large.tobytes()
    entry = next(entry for entry in headers(store)[0].entries if entry.name == "large")
    assert entry.shape == (num_bytes,)


def test_many_tiny_tensors_share_segments() -> None:
    rng = np.random.default_rng(0)
    round_trip({f"layer.{n}/w": rng.integers(0, 255, n % 13, np.uint8) for n in range(3000)})


def test_entries_are_aligned_to_their_dtype_without_gaps() -> None:
    leaves = {
        "a": np.ones(3, np.uint8), "b": np.ones(3, np.float64), "c": np.ones(3, np.float16), "d": np.ones(1, np.int8),
        "e": np.ones(5, np.float32), "f": np.ones(5, np.complex128), "g": np.ones(1, np.complex64),
    }  # fmt: skip
    (header,) = headers(round_trip(leaves))
    for entry in header.entries:
        itemsize = DTYPES[entry.dtype_name].itemsize
        assert (header.data_start + entry.start) % itemsize == 0, entry.name
        assert header.data_start % 4096 == 0


def test_every_dtype_comes_back_and_those_of_safetensors_are_named_as_it_does() -> None:
    rng = np.random.default_rng(0)
    leaves: dict[str, Tensor] = {}
    raw: dict[str, bytes] = {}
    for name, dtype in DTYPES.items():
        data = rng.integers(0, 2, 12 * dtype.itemsize, np.uint8)
        leaves[name] = Tensor.of_bytes(data, TensorSpec((3, 4), name))
        raw[name] = data.tobytes()
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(StateTree(leaves))
    manifest = repository.manifest(repository.resolve())
    found = manifest.load(leaves).tensors
    assert {name: tensor.read().tobytes() for name, tensor in found.items()} == raw
    assert {name: tensor.spec for name, tensor in found.items()} == {n: x.spec for n, x in leaves.items()}
    (header,) = headers(store)
    own = {entry.name: entry.dtype for entry in header.entries if not entry.name.startswith("__safepoint__/")}
    assert own == {name: dtype.safetensors for name, dtype in DTYPES.items() if dtype.safetensors}


def test_arrays_of_every_layout_are_saved_in_c_order_and_little_endian() -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    leaves = {
        "transposed": base.T, "strided": base[:, ::2, ::-1], "broadcast": np.broadcast_to(base[0, 0], (5, 4)),
        "big": base.astype(">f4"), "big_strided": base.astype(">f8")[::-1, 1], "fortran": np.asfortranarray(base[0]),
        "bfloat16": base.astype(ml_dtypes.bfloat16)[:, 1].T, "read_only": np.frombuffer(b"12345678", np.int16),
    }  # fmt: skip
    round_trip(leaves)


def test_tied_memory_is_stored_once() -> None:
    shared = np.random.default_rng(0).standard_normal((40, 50))
    leaves = {"embedding": shared, "head": shared, "other_shape": shared.reshape(50, 40), "copy": shared.copy()}
    repository, store = save(leaves)
    stored = repository.manifest(repository.resolve()).stored
    assert stored["embedding"].blocks == stored["head"].blocks == stored["other_shape"].blocks
    assert stored["copy"].blocks != stored["head"].blocks
    assert [entry.name for entry in headers(store)[0].entries] == ["embedding", "copy"]
    assert_same(load(repository), leaves)


def test_overlapping_views_are_separate() -> None:
    base = np.arange(100, dtype=np.int32)
    round_trip({"all": base, "front": base[:50], "back": base[50:], "middle": base[25:75]})


def test_equal_blocks_of_one_save_have_entries_of_their_own() -> None:
    """Also where they are named by their digest."""
    same = np.ones(100, np.complex128)
    (header,) = headers(
        round_trip({"a": same, "b": same.copy(), "c": same.copy(), "d": np.ones(100), "e": np.ones(100)})
    )
    assert len({entry.name for entry in header.entries}) == 5


@pytest.mark.parametrize(
    "name", ["", "__metadata__", "__safepoint__/x", "__safepoint__/optimizer/m", 'a"b\\c', "日本/é", " "]
)
def test_any_name_can_be_kept(name: str) -> None:
    repository, store = save({name: np.arange(3), "other": np.ones(2)})
    assert_same(load(repository), {name: np.arange(3), "other": np.ones(2)})
    (header,) = headers(store)
    if name.startswith("__"):
        assert name not in {entry.name for entry in header.entries}


def test_the_header_fits_for_the_longest_names_and_most_blocks() -> None:
    """Quotes and accents are the longest text; parts and unknown dtypes the longest entries."""
    quotes = '"' * 500
    many = {f"{quotes}{n:04}é" * 2: np.zeros((1,) * (n % 33), np.float32) for n in range(200)}
    many |= {f"x{n}": np.full(3, n, np.complex128) for n in range(500)}
    round_trip(many)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=20).filter(
            lambda text: unicodedata.is_normalized("NFC", text)
        ),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 255)),
        max_size=12,
    )
)
def test_any_tree_comes_back(specs: dict[str, tuple[str, list[int], int]]) -> None:
    leaves, raw = {}, {}
    for name, (dtype, shape, fill) in specs.items():
        spec = TensorSpec(tuple(shape), dtype)
        data = np.full(spec.num_bytes, fill, np.uint8)
        leaves[name], raw[name] = Tensor.of_bytes(data, spec), data.tobytes()
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(StateTree(leaves))
    repository.commit(StateTree(leaves))
    manifest = repository.manifest(repository.resolve())
    found = manifest.load(leaves).tensors
    assert {name: (tensor.spec, tensor.read().tobytes()) for name, tensor in found.items()} == {
        name: (tensor.spec, raw[name]) for name, tensor in leaves.items()
    }
    headers(store)


# -- deduplication -------------------------------------------------------------------------------------------------


def state(**changes: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(1000) for name in "abcdefgh"} | changes


def new_bytes(repository: Repository, leaves: dict[str, Any]) -> int:
    snapshot = repository.commit(tree_of(leaves))
    assert_same(load(repository, snapshot), leaves)
    return snapshot.written_bytes


def test_what_did_not_change_is_written_once() -> None:
    repository = Repository(MemoryStore())
    full = new_bytes(repository, state())
    assert full >= 64_000
    assert new_bytes(repository, state()) == 0
    assert 8_000 <= new_bytes(repository, state(a=np.zeros(1000))) <= 8_000 + 16_384
    assert new_bytes(Repository(repository.store), state(a=np.zeros(1000))) == 0  # another process, too
    assert len(repository.store.list("packs")) == 2


def test_a_renamed_tensor_is_found_by_its_content() -> None:
    repository = Repository(MemoryStore())
    new_bytes(repository, state())
    renamed = {f"new/{name}": value for name, value in state().items()}
    assert new_bytes(repository, renamed) == 0


def test_where_most_is_unchanged_digests_alone_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(pack, "_MOST_BATCHES", 0)
    asked: list[int] = []
    monkeypatch.setattr(pack, "checksum", lambda piece: (asked.append(len(piece)), checksum(piece))[1])
    leaves: dict[str, Any] = {f"t{n:03}": np.full(1000 + n, n, np.float32) for n in range(200)}
    repository, _ = save(leaves)
    before = repository.manifest(repository.resolve())
    del asked[:]
    leaves["t100"] = leaves["t100"] + 1  # changed
    leaves["t150"], leaves["t160"] = leaves["t160"], leaves["t150"]  # in one another's places
    leaves["t170"] = leaves["t170"][:-1]
    snapshot = repository.commit(tree_of(leaves))
    (old,) = before.packs
    stored = repository.manifest(snapshot).stored
    assert [name for name, tensor in stored.items() if tensor.blocks[0].pack != old] == ["t100", "t170"]
    assert len(asked) < 20
    assert_same(load(repository), leaves)
    assert repository.verify().ok


def test_only_the_changed_block_of_a_large_tensor_is_written() -> None:
    large = np.zeros(3 * BLOCK_BYTES, np.uint8)
    large[::4096] = np.resize(np.arange(251), len(large[::4096]))
    repository = Repository(MemoryStore())
    new_bytes(repository, {"x": large})
    large = large.copy()
    large[BLOCK_BYTES + 5] = 77
    assert BLOCK_BYTES <= new_bytes(repository, {"x": large}) <= BLOCK_BYTES + 16_384


def test_a_pack_of_which_less_than_a_quarter_is_needed_is_left_behind() -> None:
    repository = Repository(MemoryStore())
    new_bytes(repository, state())  # eight of eight
    changed = {name: np.full(1000, ord(name), np.float64) for name in "abcdefgh"}
    packs = set(repository.manifest(repository.resolve()).packs)
    almost = state(**{name: changed[name] for name in "abcde"})  # three of eight are still needed
    assert new_bytes(repository, almost) < 41_000 + 16_384
    assert packs <= set(repository.manifest(repository.resolve()).packs)
    assert new_bytes(repository, state(**{name: changed[name] for name in "abcdefg"})) >= 16_000  # one of eight
    assert not packs & set(repository.manifest(repository.resolve()).packs)


def test_constant_blocks_do_not_pin_a_pack_by_being_alike() -> None:
    """Two hundred equal tensors are used where they are, not all from the first one's place."""
    repository = Repository(MemoryStore())
    zeros = {f"m{n}": np.zeros(500) for n in range(200)}
    new_bytes(repository, zeros)
    assert new_bytes(repository, zeros) == 0
    stored = repository.manifest(repository.resolve()).stored
    assert len({block.offset for tensor in stored.values() for block in tensor.blocks}) == 200


@pytest.mark.parametrize("damage", ["missing", "cut short", "longer", "missing manifest", "damaged snapshot"])
def test_what_is_visibly_damaged_is_not_used_again(damage: str) -> None:
    store = MemoryStore()
    first = Repository(store).commit(tree_of(state()))
    pack = f"packs/{store.list('packs')[0]}"
    if damage == "missing":
        del store.files[pack]
    elif damage == "cut short":
        store.files[pack] = store.files[pack][:-1]
    elif damage == "longer":
        store.files[pack] += b"\0"
    elif damage == "missing manifest":
        del store.files[f"manifests/{first.manifest.id}.json"]
    else:
        store.files["snapshots/00000000.json"] = b"{}"
    repository = Repository(store)
    second = repository.commit(tree_of(state()))
    assert second.written_bytes >= 64_000
    assert second.parent == 0
    assert_same(load(repository, "id:1"), state())


def test_a_checksum_that_collides_is_not_trusted() -> None:
    """The digest decides."""
    repository = Repository(MemoryStore())
    leaves = {"a": np.arange(100)}
    repository.commit(tree_of(leaves))
    documents = repository._documents
    reference, stored, packs = documents._written
    block = stored["a"].blocks[0]
    other = np.arange(100)[::-1].copy()
    forged = Block(block.pack, block.offset, block.length, block.digest, checksum(other.view(np.uint8)))
    documents.keep(reference, {"a": type(stored["a"])("a", stored["a"].spec, (forged,))}, packs)
    assert repository.commit(tree_of({"a": other})).written_bytes > 0
    assert_same(load(repository), {"a": other})


def test_a_new_lineage_uses_nothing_again() -> None:
    repository = Repository(MemoryStore())
    new_bytes(repository, state())
    assert repository.commit(tree_of(state()), parent=None).written_bytes >= 64_000


def test_live_memory_that_changes_during_a_save_is_saved_as_one_of_its_states() -> None:
    """Bytes are copied before they are identified: a digest always fits what was written."""
    array = np.zeros(4 << 20, np.uint8)
    stop = threading.Event()

    def change() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            array[:] = value

    thread = threading.Thread(target=change)
    thread.start()
    try:
        repository = Repository(MemoryStore())
        for _ in range(5):
            repository.commit(tree_of({"live": array, "more": array[::2]}))
    finally:
        stop.set()
        thread.join()
    assert repository.verify().ok
    assert load(repository)["live"].shape == array.shape


# -- memory --------------------------------------------------------------------------------------------------------

MEMORY = """
import json, sys
import numpy as np
from safepoint.cli.machine import peak_bytes as peak  # getrusage would give that of whoever started this process
from safepoint.repository import Repository
from safepoint.tree import StateTree, Tensor
arrays = {f"w{n}": np.full(20 << 20, n, np.uint8) for n in range(30)}
tree = StateTree({name: Tensor.of(array) for name, array in arrays.items()})
repository = Repository(sys.argv[1])
before = peak()
repository.commit(tree)
first = peak() - before
arrays["w3"][:] = 99
repository.commit(tree)
second = peak() - before
Repository(sys.argv[1]).verify()
print(json.dumps([first, second, peak() - before]))
"""


def test_a_save_adds_little_memory_whatever_the_size(tmp_path: Any) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "r")], capture_output=True, text=True, check=True
    )
    first, second, verified = json.loads(result.stdout)
    assert max(first, second, verified) <= 200 << 20


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    repository = Repository(MemoryStore())
    leaves = state() | {"tied": state()["a"], "long": b"x" * 100_000}
    repository.commit(tree_of(leaves), progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_numpy_knows_every_dtype_that_has_one() -> None:
    for name, dtype in DTYPES.items():
        assert dtype_of(name).itemsize == dtype.itemsize


@pytest.mark.parametrize("seed", range(4))
def test_small_tensors_are_gathered_between_large_and_unchanged_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (0, 1, 5, 1000, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, (128 << 10) + 3, (1 << 20) + 1)
    weights = (1, 4, 4, 20, 4, 4, 4, 1, 1)
    dtypes = (np.uint8, np.uint16, np.uint32)
    leaves: dict[str, Any] = {
        f"t{n}": rng.integers(0, 200, rng.choice(sizes, p=np.divide(weights, sum(weights))), dtypes[n % 3])
        for n in range(300)
    }
    repository, store = save(leaves)
    assert_same(load(repository), leaves)
    for name in list(leaves)[::2]:
        leaves[name] = leaves[name] + leaves[name].dtype.type(1)
    repository.commit(tree_of(leaves))
    assert_same(load(repository), leaves)
    assert repository.verify().ok
    assert len(headers(store)) == 2
