"""Bits that flip, files that are cut, swapped or hostile: always found, named, and nothing else is lost."""

from __future__ import annotations

import contextlib
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.repository.trees import assert_same, load, tree_of

from safepoint.codec import seal
from safepoint.errors import CorruptionError, SafepointError, UnsupportedError
from safepoint.repository import Repository
from safepoint.repository.schema import decode, decode_sealed, encode
from safepoint.store import MemoryStore

LEAVES = {
    "model/w": np.arange(600, dtype=np.float32).reshape(20, 30), "model/b": np.arange(30, dtype=np.int16),
    "model/c": np.arange(9, dtype=np.complex128), "empty": np.zeros((0, 2)), "step": 7, "lr": 0.1, "text": "x" * 70_000,
}  # fmt: skip


def small() -> MemoryStore:
    """Two snapshots that share a pack, with a mark each."""
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(tree_of(LEAVES), step=1, metrics={"loss": 0.5}, config={"lr": 0.1})
    repository.commit(tree_of(LEAVES | {"step": 8}), step=2, metrics={"loss": 0.25})
    repository.tag("1", "a")
    repository.tag("2", "b")
    return store


def damaged_copy(store: MemoryStore, file: str, data: bytes) -> Repository:
    copy = MemoryStore()
    copy.files = {**store.files, file: data}
    return Repository(copy)


def documents(store: MemoryStore) -> list[str]:
    return [name for name in store.files if not name.startswith("packs/")]


def assert_found(repository: Repository, file: str, what: str, *, other: bool = True) -> None:
    """Loading what the file belongs to fails with its name; the other snapshot is still there."""
    first, second = (0, 1) if "00000000" in file else (1, 0)
    if file.startswith("manifests/"):
        documents = repository.history()[0]
        first = next(n for n, s in documents.items() if s.manifest.id in file)
        second = 1 - first
    with pytest.raises(SafepointError) as caught:
        load(repository, f"id:{first}")
    assert isinstance(caught.value, CorruptionError), what
    assert caught.value.file == file, what
    if other and file != "safepoint.json":
        assert load(repository, f"id:{second}")["step"] == 7 + second, what


def test_every_flipped_bit_of_every_document_is_found() -> None:
    store = small()
    flips = 0
    for file in documents(store):
        data = store.files[file]
        for position in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[position] ^= 1 << bit
                flips += 1
                if file.startswith("manifests/") and (position + bit) % 8:
                    continue  # under one digest, which is tested for every byte
                assert_found(
                    damaged_copy(store, file, bytes(changed)),
                    file,
                    f"bit {bit} of byte {position} of {file}",
                    other=bit == 0,
                )
    assert flips > 20_000


def test_documents_cut_at_every_byte_are_found() -> None:
    store = small()
    for file in documents(store):
        for length in range(len(store.files[file])):
            assert_found(
                damaged_copy(store, file, store.files[file][:length]),
                file,
                f"{file} cut to {length} bytes",
                other=length % 8 == 0,
            )


def test_documents_with_something_added_are_found() -> None:
    store = small()
    for file in documents(store):
        for extra in (b" ", b"\n", b"\0", b"{}"):
            assert_found(damaged_copy(store, file, store.files[file] + extra), file, f"{file} plus {extra!r}")
            assert_found(damaged_copy(store, file, extra + store.files[file]), file, f"{extra!r} plus {file}")


def test_random_flips_in_packs_are_found_on_load_and_named() -> None:
    store = small()
    (pack,) = (name for name in store.files if name.startswith("packs/"))
    repository = Repository(store)
    manifest = repository.manifest(repository.resolve())
    spans = {
        (block.offset, block.offset + block.length): stored.name
        for stored in manifest.stored.values()
        for block in stored.blocks
    }
    start = next(iter(manifest.packs.values())).header_bytes
    data = bytearray(store.files[pack])
    rng = random.Random(0)
    for _ in range(2500):
        position, bit = rng.randrange(start, len(data)), 1 << rng.randrange(8)
        data[position] ^= bit
        with pytest.raises(CorruptionError) as caught:
            load(damaged_copy(store, pack, bytes(data)))
        name = next(name for (first, last), name in spans.items() if first <= position < last)
        assert (caught.value.file, caught.value.name) == (pack, name)
        assert caught.value.span is not None
        data[position] ^= bit
    assert_same(load(damaged_copy(store, pack, bytes(data)), "id:0"), LEAVES)


def test_every_flipped_byte_of_a_pack_is_found_by_verify() -> None:
    """The header too, which loads do not need."""
    store = small()
    (pack,) = (name for name in store.files if name.startswith("packs/"))
    data = bytearray(store.files[pack])
    for position in [*range(600), *range(600, len(data), 97)]:
        data[position] ^= 0x10
        result = damaged_copy(store, pack, bytes(data)).verify()
        assert result.whole == ()
        assert {damage.file for damage in result.damage} == {pack}
        data[position] ^= 0x10


def test_packs_cut_anywhere_are_found_before_memory_is_taken() -> None:
    store = small()
    (pack,) = (name for name in store.files if name.startswith("packs/"))
    whole = store.files[pack]
    for length in [*range(64), *range(64, len(whole), 499), len(whole) - 1]:
        with pytest.raises(CorruptionError) as caught:
            load(damaged_copy(store, pack, whole[:length]))
        assert caught.value.file == pack
        assert caught.value.name in LEAVES
    del store.files[pack]
    with pytest.raises(CorruptionError, match="is damaged in packs/") as caught:
        load(Repository(store))
    assert caught.value.found == "no such file"


def test_swapped_files_are_found() -> None:
    store = MemoryStore()
    repository = Repository(store)
    for value in range(2):
        repository.commit(tree_of({"w": np.full(500, value)}), parent=None)
        repository.tag(f"id:{value}", f"t{value}")
    names = {
        "packs": [f"packs/{name}" for name in store.list("packs")],
        "manifests": [f"manifests/{name}" for name in store.list("manifests")],
        "snapshots": ["snapshots/00000000.json", "snapshots/00000001.json"],
        "marks": ["marks/00000000-0.json", "marks/00000001-0.json"],
    }
    for folder, (one, other) in names.items():
        copy = MemoryStore()
        copy.files = {**store.files, one: store.files[other], other: store.files[one]}
        for reference in ("id:0", "id:1"):
            with pytest.raises(CorruptionError) as caught:
                load(Repository(copy), reference)
            assert caught.value.file in names[folder], folder


def test_a_snapshot_of_another_repository_is_found() -> None:
    one, other = small(), small()
    for file in ("snapshots/00000001.json", "marks/00000001-0.json"):
        with pytest.raises(CorruptionError, match="belongs elsewhere"):
            load(damaged_copy(one, file, other.files[file]), "id:1")


# -- hostile documents ---------------------------------------------------------------------------------------------


def deep(text: bytes) -> bytes:
    return text * 50_000


def body_of(store: MemoryStore, file: str) -> Any:
    data = json.loads(store.files[file])
    return data if file.startswith("manifests/") else data["body"]


HOSTILE: list[Any] = [
    None, True, False, -1, 2**63, 2**64, 10**400, 0.5, 1e308,
    "", "x", "\0", "../../etc/passwd", "a" * 100_000, [], {}, [[]],
    [None], {"": None}, {"int": "0x" + "f" * 10}, {"int": "zzz"}, {"float": "nan"}, {"float": []}, {"complex": [1]},
    {"bytes": "é"}, {"unknown": 1}, {"list": [{"dict": 3}]}, {"dict": [[1, 2]]}, {"dict": [["a"]]}, [1] * 10_000,
    [2**62] * 64, [0] * 65, [-1], [2**48 + 1], [1e3], [["w", 1]], [["w", {"float": "nan"}], ["w", 1]],
    ["model/w", "x", "y"], {"kind": 3}, {"kind": "dict", "keys": 3}, {"kind": "dict", "children": [[]]},
    "2030-01-01T00:00:00", "9999-99-99", "int1", "float99", "codec",
]  # fmt: skip


def paths(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, the first two of each list."""
    found = [prefix] if prefix else []
    children = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, child in children:
        found += paths(child, (*prefix, key))
    return found


def with_value(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = with_value(copy[path[0]], path[1:], value)
    return copy


def without(data: Any, path: tuple[Any, ...]) -> Any:
    copy = dict(data) if isinstance(data, dict) else list(data)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(copy[path[0]], path[1:])
    return copy


def use(repository: Repository) -> None:
    repository.history()
    found = {}
    for reference in ("id:0", "id:1", "latest", "a", "best"):
        with contextlib.suppress(SafepointError):
            snapshot = repository.resolve(reference)
            found[snapshot.number] = snapshot
    for snapshot in found.values():
        with contextlib.suppress(SafepointError):
            sum(value.nbytes for value in load(repository, snapshot).values() if isinstance(value, np.ndarray))
    repository.verify()


def survives(action: Callable[[], object], what: str, *, seconds: float = 5.0, num_bytes: int = 64 << 20) -> None:
    """Whatever it is: a typed error or none, soon, and in little memory."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        action()
    except SafepointError as error:
        str(error)
    except BaseException as error:
        raise AssertionError(f"{what}: {error!r}") from error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= num_bytes, what
    assert time.monotonic() - started <= seconds, what


def resealed(store: MemoryStore, file: str, body: bytes) -> MemoryStore:
    """The store with another content for a document, under a right digest everywhere: what an attacker would do."""
    copy = MemoryStore()
    copy.files = dict(store.files)
    if not file.startswith("manifests/"):
        copy.files[file] = seal(body)
        return copy
    from safepoint.codec import digest

    copy.files[file] = body
    for name in ("snapshots/00000000.json", "snapshots/00000001.json"):
        snapshot = json.loads(copy.files[name])["body"]
        if snapshot["manifest"]["id"] in file:
            snapshot["manifest"] |= {"num_bytes": len(body), "digest": digest(body)}
            copy.files[name] = seal(json.dumps(snapshot).encode())
    return copy


def targets(store: MemoryStore) -> list[str]:
    manifest = body_of(store, "snapshots/00000000.json")["manifest"]["id"]
    return ["safepoint.json", "snapshots/00000000.json", "marks/00000000-0.json", f"manifests/{manifest}.json"]


def test_resealing_by_itself_changes_nothing() -> None:
    store = small()
    for file in targets(store):
        same = resealed(store, file, json.dumps(body_of(store, file)).encode())
        assert_same(load(Repository(same), "id:0"), LEAVES)


@pytest.mark.parametrize("index", range(4), ids=["format", "snapshot", "mark", "manifest"])
def test_hostile_values_in_any_place_are_refused_quickly_and_typed(index: int) -> None:
    store = small()
    file = targets(store)[index]
    body = body_of(store, file)
    tried = 0
    for path in paths(body):
        if len(path) > 6:
            continue
        hostile = [*(with_value(body, path, value) for value in HOSTILE), without(body, path)]
        for changed in hostile:
            text = json.dumps(changed).encode()
            repository = Repository(resealed(store, file, text))
            try:
                load(repository, "id:0") if index == 3 else use(repository)
            except SafepointError:
                pass
            except BaseException as error:
                raise AssertionError(f"{file} {path} {text[:200]!r}: {error!r}") from error
            tried += 1
    assert tried > 100


RAW = [
    b"", b"{", b"[]", b"null", b"{}", b"\xff", b"\xef\xbb\xbf{}", b'{"version":1}', b'{"version":NaN}',
    b'{"version":1e999}',
    b'{"version":' + b"9" * 5000 + b"}", deep(b"["), deep(b'{"a":'), b'{"version":"\\ud800"}',
    b'{"version":1,"version":1}',
    b'{"version":1} x', b"\0" * 1000, b'{"version":Infinity}', b'{"version":01}', b"{'version':1}",
]  # fmt: skip


@pytest.mark.parametrize("index", range(4), ids=["format", "snapshot", "mark", "manifest"])
def test_text_that_is_no_document_is_refused_quickly_and_typed(index: int) -> None:
    store = small()
    file = targets(store)[index]
    original = json.dumps(body_of(store, file)).encode()
    twice = original.replace(b'{"', b'{"version":1,"', 1)
    nested = original[:-1] + b',"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    for text in [*RAW, twice, nested, original[:-1] + b',"x":"\\ud800"}', original[:-1] + b',"x":1e400}']:
        survives(lambda text=text: use(Repository(resealed(store, file, text))), repr(text[:80]))


def test_unknown_fields_are_ignored() -> None:
    store = small()
    for file in targets(store):
        body = body_of(store, file) | {"later": {"anything": [1, 2]}}
        assert_same(load(Repository(resealed(store, file, json.dumps(body).encode())), "id:0"), LEAVES)


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Repository:
    store = small()
    file = targets(store)[3]
    body = body_of(store, file)
    change(body)
    return Repository(resealed(store, file, json.dumps(body).encode()))


def tensor(body: dict[str, Any], name: str = "model/w") -> dict[str, Any]:
    return next(item for item in body["tensors"] if item["name"] == name)


def claim(body: dict[str, Any], *, shape: list[int], blocks: int = 1, length: int | None = None, pack: int = 0) -> None:
    item = tensor(body)
    item["shape"] = item["shards"][0]["shape"] = shape
    item["shards"][0]["offset"] = [0] * len(shape)
    block = item["shards"][0]["blocks"][0]
    num_bytes = 4 * int(np.prod(shape, dtype=object))
    item["shards"][0]["blocks"] = [[pack, block[1], length or min(num_bytes, 16 << 20), *block[3:]]] * blocks
    body["packs"][pack]["num_bytes"] = max(body["packs"][pack]["num_bytes"], num_bytes + 10**6)


def swap_lengths(body: dict[str, Any]) -> None:
    item = tensor(body)
    pack, offset, length, *rest = item["shards"][0]["blocks"][0]
    item["shards"][0]["blocks"] = [[pack, offset, length + 100, *rest], [pack, offset, -100, *rest]]


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "8 TB in one block": lambda body: claim(body, shape=[2 << 40]),
    "16 GB in blocks": lambda body: claim(body, shape=[1 << 20, 1 << 12], blocks=1024),
    "10,000 dimensions": lambda body: claim(body, shape=[1] * 10_000),
    "2**2880 bytes": lambda body: claim(body, shape=[2**48] * 60),
    "an absurd empty shape": lambda body: claim(body, shape=[0, 2**62]),
    "one byte short": lambda body: claim(body, shape=[600], length=2399),
    "negative offset": lambda body: tensor(body)["shards"][0]["blocks"][0].__setitem__(1, -8),
    "offset beyond the pack": lambda body: tensor(body)["shards"][0]["blocks"][0].__setitem__(1, 10**15),
    "offset beyond any file": lambda body: tensor(body)["shards"][0]["blocks"][0].__setitem__(1, 10**30),
    "pack that is not listed": lambda body: tensor(body)["shards"][0]["blocks"][0].__setitem__(0, 1),
    "negative pack": lambda body: tensor(body)["shards"][0]["blocks"][0].__setitem__(0, -1),
    "lengths that cancel out": swap_lengths,
    "no shard": lambda body: tensor(body)["shards"].clear(),
    "shard elsewhere": lambda body: tensor(body)["shards"][0]["offset"].__setitem__(0, 1),
    "tensor twice": lambda body: body["tensors"].append(tensor(body)),
    "tensor and value": lambda body: body["values"].append(["model/w", 1]),
    "pack twice": lambda body: body["packs"].append(body["packs"][0]),
    "pack outside": lambda body: body["packs"][0].update(id="../../etc/passwd"),
    "pack that is not there": lambda body: body["packs"][0].update(id="f" * 24),
    "number that is a tensor": lambda body: tensor(body).update(value="int"),
    "name with a line break": lambda body: tensor(body).update(name="a\nb"),
    "value with a wrong checksum": lambda body: tensor(body, "text")["shards"][0]["blocks"][0].__setitem__(4, "0" * 16),
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_a_manifest_that_lies_fails_fast_and_small(change: Callable[[dict[str, Any]], object]) -> None:
    repository = manifest_with(change)

    def restore() -> None:
        with pytest.raises(CorruptionError):
            load(repository, "id:0")

    survives(restore, "lying manifest", seconds=2.0, num_bytes=8 << 20)
    assert load(repository, "id:1")["step"] == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda body: tensor(body).update(codec="planes"),
        lambda body: tensor(body)["shards"].append(tensor(body)["shards"][0]),
        lambda body: tensor(body).update(dtype="float128"),
        lambda body: body["values"].append(["v", {"decimal": "1.0"}]),
    ],
    ids=["codec", "shards", "dtype", "value"],
)
def test_what_a_later_version_may_write_is_unsupported_rather_than_damaged(change: Any) -> None:
    with pytest.raises(UnsupportedError):
        load(manifest_with(change), "id:0")


def test_lengths_of_files_are_checked_before_they_are_read() -> None:
    class Sparse(MemoryStore):
        """Claims to hold a terabyte in one of its files."""

    store = small()
    huge = bytes(17 << 20)
    for file in ("safepoint.json", "snapshots/00000001.json", "marks/00000001-0.json"):
        with pytest.raises(CorruptionError, match="too long"):
            load(damaged_copy(store, file, huge))
    manifest = f"manifests/{Repository(store).resolve().manifest.id}.json"
    with pytest.raises(CorruptionError, match="too long"):
        load(damaged_copy(store, manifest, store.files[manifest] + b" "))


@pytest.mark.parametrize(
    "name", ["99999999999999999.json", "1.json", "000000001.json", "²²²²²²²².json", "x.json", "00000009"]
)
def test_strangers_among_the_snapshots_are_no_snapshots(name: str) -> None:
    store = small()
    store.files[f"snapshots/{name}"] = b"{}"
    store.files[f"marks/{name.replace('.json', '-0.json')}"] = b"{}"
    repository = Repository(store)
    snapshots, damaged = repository.history()
    assert list(snapshots) == [0, 1]
    if name.startswith("999"):
        assert list(damaged) == [99999999999999999]
        survives(repository.collect, name)
    else:
        assert damaged == {}
        assert load(repository)["step"] == 8
        assert repository.commit(tree_of({})).number == 2


def test_decoding_a_document_again_gives_the_same_bytes() -> None:
    """Canonical: what is signed one day can be made again from what was read."""
    from safepoint.repository import schema

    store = small()
    kinds = {"safe": schema.FormatDocument, "snap": schema.SnapshotDocument, "mark": schema.MarkDocument}
    for file in documents(store):
        data = store.files[file]
        if file.startswith("manifests/"):
            assert encode(decode(data, schema.ManifestDocument, file=file)) == data
        else:
            assert seal(encode(decode_sealed(data, kinds[file[:4]], file=file))) == data


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_a_document_in_another_encoding_is_damaged_and_no_codec_is_looked_for(encoding: str) -> None:
    store = small()
    file = "snapshots/00000000.json"
    body = json.dumps(body_of(store, file)).encode(encoding)
    with pytest.raises(CorruptionError) as caught:
        load(Repository(resealed(store, file, body)), "id:0")
    assert caught.value.file == file
