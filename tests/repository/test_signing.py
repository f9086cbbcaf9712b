"""Signatures cover every byte, hold after compaction, and nothing that was changed or swapped passes for signed."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tests.repository.damaging import blocks_of, flip
from tests.repository.trees import load, tree_of

from safepoint.codec import digest, seal
from safepoint.errors import CorruptionError, NotFoundError, SafepointError, UnsupportedError, UntrustedError
from safepoint.limits import MAX_KEY_BYTES
from safepoint.repository import Repository, signing, write_model_file
from safepoint.repository.layout import mark_file, snapshot_file
from safepoint.repository.signing import SUFFIX, check_file, sign_file
from safepoint.store import MemoryStore


def make_keys(number: int) -> tuple[bytes, bytes]:
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), public


SECRET, PUBLIC = make_keys(1)
OTHER_SECRET, OTHER_PUBLIC = make_keys(2)
LEAVES = {"w": np.arange(300.0), "b": np.arange(9), "step": 1, "note": "n" * 70_000}


def signed(count: int = 1) -> MemoryStore:
    store = MemoryStore()
    repository = Repository(store)
    for step in range(count):
        repository.commit(tree_of(LEAVES | {"step": step}), step=step, metrics={"loss": 0.5}, config={"lr": 0.1})
        repository.sign(f"id:{step}", SECRET)
    return store


def is_trusted(store: MemoryStore, reference: str = "id:0", key: bytes = PUBLIC) -> bool:
    """As `safepoint verify --key` does it: the signature, then every byte."""
    try:
        Repository(store).check_signature(reference, key)
        return Repository(store).verify(reference).ok
    except SafepointError:
        return False


def test_what_was_signed_is_trusted_with_that_key_only() -> None:
    store = signed()
    assert is_trusted(store)
    name = Repository(store).check_signature("id:0", PUBLIC)
    assert len(name) == 64
    with pytest.raises(UntrustedError, match="is not signed with this key") as caught:
        Repository(store).check_signature("id:0", OTHER_PUBLIC)
    assert caught.value.found == name
    Repository(store).commit(tree_of(LEAVES), step=7)
    with pytest.raises(UntrustedError, match="not signed") as caught:
        Repository(store).check_signature("latest", PUBLIC)
    assert caught.value.found == "no signature"


def test_two_may_sign_and_one_signs_twice() -> None:
    store = signed()
    repository = Repository(store)
    repository.sign("id:0", OTHER_SECRET)
    repository.sign("id:0", SECRET)
    assert len(repository.resolve("id:0").signatures) == 2
    assert is_trusted(store)
    assert is_trusted(store, key=OTHER_PUBLIC)


def test_what_is_decided_later_keeps_the_signature() -> None:
    store = signed(2)
    repository = Repository(store)
    repository.tag("id:0", "released")
    repository.add_metrics("id:0", {"accuracy": 0.5})
    repository.verify()
    repository.untag("released")
    assert is_trusted(store)


def test_it_holds_after_healing_repair_and_compaction() -> None:
    store = MemoryStore()
    repository = Repository(store)
    noise = np.random.default_rng(0).integers(0, 255, 100_000, np.uint8)
    repository.commit(tree_of(LEAVES | {"noise": noise}), step=0)
    repository.commit(tree_of(LEAVES), step=1)
    repository.commit(tree_of(LEAVES | {"more": np.ones(3)}), step=2)
    repository.sign("id:1", SECRET)
    repository.delete("id:0")
    assert repository.compact().packs == 1
    assert is_trusted(store, "id:1")
    flip(store, blocks_of(repository, "id:1", "w")[0])
    assert not is_trusted(store, "id:1")
    repository.commit(tree_of(LEAVES), step=3)
    repository.collect()
    assert is_trusted(store, "id:1")


def test_every_changed_byte_of_the_documents_is_found() -> None:
    store = signed()
    manifest = f"manifests/{store.list('manifests')[0]}"
    for file in (snapshot_file(0), mark_file(0, 0), manifest, "safepoint.json"):
        whole = store.files[file]
        step = 5 if file == manifest else 1
        for position in range(0, len(whole), step):
            data = bytearray(whole)
            data[position] ^= 1 << position % 8
            store.files[file] = bytes(data)
            assert not is_trusted(store), (file, position)
        store.files[file] = whole
    assert is_trusted(store)


def test_bytes_of_tensors_and_values_are_covered() -> None:
    store = signed()
    (pack,) = (name for name in store.files if name.startswith("packs/"))
    whole = store.files[pack]
    rng = random.Random(0)
    for _ in range(100):
        position = rng.randrange(len(whole))
        data = bytearray(whole)
        data[position] ^= 1 << rng.randrange(8)
        store.files[pack] = bytes(data)
        assert not is_trusted(store), position


FORGED: list[dict[str, Any]] = [
    {"step": 9}, {"number": 1}, {"parent": 0}, {"time": "2031-01-01T00:00:00.000000+00:00"},
    {"metrics": [["loss", 0.1]]}, {"config": {"dict": [["lr", 1.0]]}}, {"tags": ["x"]}, {"repository": "0" * 32},
    {"environment": {"python": "9"}},
    {"totals": {"num_tensors": 0, "num_bytes": 0, "written_bytes": 0}}, {"extra": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", FORGED, ids=[next(iter(change)) for change in FORGED])
def test_a_snapshot_forged_under_a_right_seal_is_not_what_was_signed(change: dict[str, Any]) -> None:
    store = signed()
    body = json.loads(store.files[snapshot_file(0)])["body"] | change
    store.files[snapshot_file(0)] = seal(json.dumps(body, separators=(",", ":")).encode())
    assert not is_trusted(store)


def test_another_manifest_under_right_digests_is_not_what_was_signed() -> None:
    store = signed()
    body = json.loads(store.files[snapshot_file(0)])["body"]
    file = f"manifests/{body['manifest']['id']}.json"
    manifest = json.loads(store.files[file])
    manifest["values"][0][1] = 99
    data = json.dumps(manifest, separators=(",", ":")).encode()
    store.files[file] = data
    body["manifest"] |= {"num_bytes": len(data), "digest": digest(data)}
    store.files[snapshot_file(0)] = seal(json.dumps(body, separators=(",", ":")).encode())
    assert load(Repository(store), "id:0")["step"] == 99  # whole, but not what was signed
    with pytest.raises(UntrustedError, match="is not what was signed"):
        Repository(store).check_signature("id:0", PUBLIC)


def with_signature(store: MemoryStore, number: int, signatures: Any) -> None:
    for name in [name for name in store.files if name.startswith("marks/") and not name.endswith("-0.json")]:
        del store.files[name]  # what a verification wrote
    body = json.loads(store.files[mark_file(number, 0)])["body"] | {"signatures": signatures}
    store.files[mark_file(number, 0)] = seal(json.dumps(body).encode())


def test_signatures_of_others_and_broken_ones_do_not_fit() -> None:
    store = signed(2)
    signatures = [json.loads(store.files[mark_file(n, 0)])["body"]["signatures"][0] for n in range(2)]
    assert is_trusted(store)
    key, own = signatures[0]
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(bytes.fromhex(own[64:]), "little") + order
    malleable = own[:64] + scalar.to_bytes(32, "little").hex()
    broken = [
        [signatures[1]], [[key, ""]], [[key, own[:-2]]], [[key, own + "00"]], [[key, own.upper()]], [[key, "zz" * 64]],
        [[key, "00" * 64]], [[key, malleable]], [["00" * 32, own]], [[own, key]], [],
    ]  # fmt: skip
    for signature in broken:
        with_signature(store, 0, signature)
        assert not is_trusted(store), signature
    for position in range(128):
        changed = own[:position] + format(int(own[position], 16) ^ 1, "x") + own[position + 1 :]
        with_signature(store, 0, [[key, changed]])
        assert not is_trusted(store), position
    for wrong in ("x", [1], [[1, 2]], [["a", "b", "c"]], [[None, own]]):
        with_signature(store, 0, wrong)
        assert not is_trusted(store), wrong
    with_signature(store, 0, [[key, "00" * 64], [key, own]])
    assert is_trusted(store)


def test_a_signed_snapshot_of_another_repository_is_refused() -> None:
    one, other = signed(), signed()
    files = {name: data for name, data in other.files.items() if name != "safepoint.json"}
    mixed = MemoryStore()
    mixed.files = {**files, "safepoint.json": one.files["safepoint.json"]}
    assert not is_trusted(mixed)


def test_keys_of_openssl_and_wrong_keys(tmp_path: Path) -> None:
    for command in ("genpkey -algorithm ed25519 -out key.pem", "pkey -in key.pem -pubout -out public.pem"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    store = signed()
    repository = Repository(store)
    repository.sign("id:0", (tmp_path / "key.pem").read_bytes())
    assert is_trusted(store, key=(tmp_path / "public.pem").read_bytes())
    curve = ec.generate_private_key(ec.SECP256R1())
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    others = [
        b"", b"x", PUBLIC, locked, SECRET[:40], SECRET.replace(b"PRIVATE", b"RSA"),
        curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ]  # fmt: skip
    for data in others:
        with pytest.raises(UnsupportedError, match="no private Ed25519 key"):
            repository.sign("id:0", data)
    curve_public = curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (b"", SECRET, PUBLIC[:-40], curve_public):
        with pytest.raises(UnsupportedError, match="no public Ed25519 key"):
            repository.check_signature("id:0", data)


def test_without_cryptography_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    store = signed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="need cryptography") as caught:
        Repository(store).sign("id:0", SECRET)
    assert "safepoint[sign]" in str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    write_model_file(path, tree_of(LEAVES), structure={"class": "x"}, format="keras")
    return path


def test_a_model_file_with_a_detached_signature(model: Path) -> None:
    assert sign_file(model, SECRET) == Path(f"{model}.sig")
    assert len(check_file(model, PUBLIC)) == 64
    with pytest.raises(UntrustedError, match="not signed with this key"):
        check_file(model, OTHER_PUBLIC)
    sign_file(model, OTHER_SECRET)  # replaces it
    check_file(model, OTHER_PUBLIC)


def test_a_changed_file_or_signature_is_found(model: Path) -> None:
    sign_file(model, SECRET)
    whole, signature = model.read_bytes(), Path(f"{model}{SUFFIX}")
    rng = random.Random(1)
    for _ in range(100):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        model.write_bytes(data)
        with pytest.raises(UntrustedError, match="is not what was signed"):
            check_file(model, PUBLIC)
    for data in (whole[:-1], whole + b"\0", b""):
        model.write_bytes(data)
        with pytest.raises(UntrustedError):
            check_file(model, PUBLIC)
    model.write_bytes(whole)
    text = signature.read_bytes()
    fields = text.index(b'"key"')  # what stands before is told, and never believed
    for position in range(fields, len(text) - 1):
        data = bytearray(text)
        data[position] ^= 1
        signature.write_bytes(data)
        with pytest.raises(UntrustedError):
            check_file(model, PUBLIC)
    for length in range(0, len(text) - 1, 7):
        signature.write_bytes(text[:length])
        with pytest.raises(UntrustedError):
            check_file(model, PUBLIC)
    signature.write_bytes(b"[" * 60_000)
    with pytest.raises(UntrustedError):
        check_file(model, PUBLIC)
    signature.write_bytes(b" " * 100_000)
    with pytest.raises(CorruptionError, match="too long"):
        check_file(model, PUBLIC)
    signature.unlink()
    with pytest.raises(UntrustedError, match="is not signed"):
        check_file(model, PUBLIC)


def test_statements_of_snapshots_and_files_cannot_be_taken_for_each_other(model: Path) -> None:
    store = signed()
    own = json.loads(store.files[mark_file(0, 0)])["body"]["signatures"][0][1]
    sign_file(model, SECRET)
    path = Path(f"{model}{SUFFIX}")
    document = json.loads(path.read_bytes())
    file_signature = document["signature"]
    path.write_text(json.dumps(document | {"signature": own}))
    with pytest.raises(UntrustedError):
        check_file(model, PUBLIC)
    with_signature(store, 0, [[document["key"], file_signature]])
    assert not is_trusted(store)


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 20, 21])
def test_a_signature_covers_every_byte_of_a_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "_PIECE_BYTES", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(size)))
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    statement = signing._file_statement(path)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    assert (statement.num_bytes, statement.digest) == (size, digest(bytes(range(size))))


def test_a_key_is_a_small_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    assert signing.read_key(tmp_path / "key") == SECRET
    (tmp_path / "key").write_bytes(bytes(MAX_KEY_BYTES))
    assert len(signing.read_key(tmp_path / "key")) == MAX_KEY_BYTES
    (tmp_path / "key").write_bytes(bytes(MAX_KEY_BYTES + 1))
    with pytest.raises(CorruptionError, match="too long"):
        signing.read_key(tmp_path / "key")
    with pytest.raises(NotFoundError):
        signing.read_key(tmp_path / "nowhere")
