"""Parsers of untrusted bytes, fed with mutations of what is right and of every known attack.

Whatever it is, it is taken or refused by an error of our own; no header is taken that safetensors refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.attacks.test_headers import ATTACKS, file
from tests.crash.scenario import tree_of
from tests.torture.report import Torture

from safepoint.codec import digest, read_header, seal
from safepoint.errors import SafepointError
from safepoint.repository import Repository, read_model_file, write_model_file
from safepoint.store import MemoryStore

TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"0", b"-1", b"1e9", b"true", b"null", b"NaN", b"18446744073709551616",
    b"\\u0000", b"\\ud800", b"\xff", b"\0", b" ", b'"F32"', b'"BOOL"', b'"F4"', b'"shape"', b'"data_offsets"',
    b'"__metadata__"', b"[0,0]",
]  # fmt: skip
DATA = bytes(22)
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
VALID = [
    file({}), file({"w": ENTRY}, bytes(16)), file({"__metadata__": {"format": "pt"}, "w": ENTRY}, bytes(16)),
    file({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}, "é": {**ENTRY, "data_offsets": [6, 22]}}, DATA),
]  # fmt: skip


def mutate(rng: Random, data: bytes, *, start: int = 0) -> bytes:
    """One to four small changes behind `start`."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(start, len(changed) + 1)
        length = rng.randrange(0, 6)
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            changed[at : at + length] = rng.choice(TOKENS)
        elif kind == 3:
            del changed[at : at + length]
        else:
            other = rng.randrange(start, len(changed) + 1)
            changed[at:at] = changed[other : other + 4 * length]
    return bytes(changed)


def with_length(data: bytes) -> bytes:
    """The header's length made right again, so that what is in it is looked at."""
    end = data.rfind(b"}") + 1
    return max(0, end - 8).to_bytes(8, "little") + data[8:]


def is_taken(data: bytes) -> bool:
    try:
        read_header(lambda start, length: data[start : start + length], len(data), file="fuzz")
    except SafepointError:
        return False
    return True


def compare(torture: Torture, take: Callable[[bytes], bool], budget: int) -> tuple[int, int]:
    """How many files both took, how many we took that safetensors refuses."""
    theirs = pytest.importorskip("safetensors")
    corpus = [*VALID, *VALID, *(data for data, _ in ATTACKS.values() if 8 < len(data) < 1000)]
    both = wrong = 0
    for _ in range(budget):
        data = mutate(torture.rng, torture.rng.choice(corpus))
        if torture.rng.random() < 0.7:
            data = with_length(data)
        if take(data):
            try:
                theirs.deserialize(data)
                both += 1
            except theirs.SafetensorError:
                wrong += 1
                assert take is not is_taken, f"{data!r}: {torture.replay}"
    return both, wrong


def test_no_safetensors_file_is_taken_that_safetensors_refuses(torture: Torture) -> None:
    budget = torture.budget(5_000, 1_000_000)
    both, _ = compare(torture, is_taken, budget)
    assert both > budget / 1000
    torture.record("Fuzzed safetensors headers", budget, f"beside safetensors itself; both took {both:,}")


def test_a_careless_parser_is_caught(torture: Torture) -> None:
    def careless(data: bytes) -> bool:
        try:
            return isinstance(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]), dict)
        except ValueError:
            return False

    _, wrong = compare(torture, careless, 2_000)
    assert wrong
    torture.record("Fuzzed headers, broken on purpose", 2_000, "any JSON is taken", controls=f"{wrong} times")


def small() -> tuple[MemoryStore, dict[str, bytes]]:
    store = MemoryStore()
    repository = Repository(store)
    repository.commit(
        tree_of({"w": np.arange(50), "n": 1, "t": "x"}), metrics={"loss": 0.5}, config={"a": [1, {"b": 2}]}
    )
    repository.tag("latest", "kept")
    return store, dict(store.files)


def use(repository: Repository) -> None:
    repository.history()
    snapshot = repository.resolve("id:0")
    manifest = repository.manifest(snapshot)
    manifest.load(manifest.tree.leaves)
    repository.verify()


def resealed(files: dict[str, bytes], name: str, rng: Random) -> dict[str, bytes]:
    """A document changed by somebody who knows how to seal."""
    data = files[name]
    if name.startswith("manifests/"):
        body = mutate(rng, data)
        snapshot = json.loads(files["snapshots/00000000.json"])["body"]
        snapshot["manifest"] |= {"num_bytes": len(body), "digest": digest(body)}
        return {**files, name: body, "snapshots/00000000.json": seal(json.dumps(snapshot).encode())}
    head = data.index(b'"body":') + 7
    return {**files, name: seal(mutate(rng, data[head:-2]))}


def test_no_document_brings_another_error_than_ours(torture: Torture) -> None:
    store, files = small()
    budget = torture.budget(700, 200_000)
    names = [name for name in files if not name.startswith("packs/")]
    taken = 0
    for _ in range(budget):
        name = torture.rng.choice(names)
        store.files = resealed(files, name, torture.rng)
        changed: Any = store.files[name]
        try:
            use(Repository(store))
            taken += 1
        except SafepointError as error:
            str(error)
        except Exception as error:
            raise AssertionError(f"{name}: {changed!r}: {torture.replay}") from error
    torture.record("Fuzzed documents", budget, f"sealed rightly: manifests, snapshots, marks; {taken:,} were harmless")


def test_no_model_file_brings_another_error_than_ours(torture: Torture, disk: Path) -> None:
    path = disk / "model"
    write_model_file(path, tree_of({"w": np.arange(50), "n": 1}), structure={"a": [1]}, format="test")
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    text, data = whole[8:length].rstrip(), whole[length:]
    budget = torture.budget(500, 100_000)
    for _ in range(budget):
        header = json.loads(text)
        document = mutate(torture.rng, header["__metadata__"]["safepoint"].encode()).decode("utf-8", "replace")
        header["__metadata__"] |= {"safepoint": document, "safepoint.digest": digest(document.encode())}
        path.write_bytes(file(header, data))
        try:
            read_model_file(path).load()
        except SafepointError as error:
            str(error)
        except Exception as error:
            raise AssertionError(f"{document!r}: {torture.replay}") from error
    torture.record("Fuzzed whole-model documents", budget, "under a right digest")
