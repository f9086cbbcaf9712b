"""Bytes that are not what was written: none is loaded silently, every error names the file and the tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.crash.scenario import tree_of
from tests.torture.report import Torture

from safepoint.errors import CorruptionError, SafepointError
from safepoint.repository import Repository, read, read_model_file, write_model_file
from safepoint.store import MemoryStore
from safepoint.tree import Tensor

PAGE = 4096
Change = Callable[[bytearray], str]
"""Damages bytes in place and says how; an empty text if they are as before."""


def content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "model/large": rng.standard_normal((32, 512)).astype(np.float32), "model/b": np.arange(30, dtype=np.int16),
        "model/c": rng.standard_normal(900), "empty": np.zeros((0, 2)), "step": 7, "lr": 0.1,
        "text": "".join(chr(97 + n % 26) for n in rng.integers(0, 26, 70_000)),
    }  # fmt: skip


def small_repository() -> MemoryStore:
    """Two snapshots that share a pack, each with a pack of its own and a mark."""
    store, repository = MemoryStore(), Repository(MemoryStore())
    repository = Repository(store)
    repository.commit(tree_of(content()), step=1, metrics={"loss": 0.5}, config={"lr": 0.1})
    repository.commit(tree_of(content() | {"model/b": np.arange(30, 60, dtype=np.int16)}), step=2)
    repository.tag("1", "a")
    repository.tag("2", "b")
    return store


def same(leaves: Any, expected: dict[str, Any]) -> bool:
    found = {n: leaf.numpy() if isinstance(leaf, Tensor) else leaf for n, leaf in leaves.items()}
    return found.keys() == expected.keys() and all(
        found[n].tobytes() == x.tobytes() if isinstance(x, np.ndarray) else found[n] == x for n, x in expected.items()
    )


@dataclass
class Verdict:
    """What became of one damage."""

    silent: bool = False  # other values than were saved, or nothing ever said
    unnamed: str = ""  # an error that does not say what is damaged


def judge(store: MemoryStore, file: str, data: bytes, contents: list[dict[str, Any]]) -> Verdict:
    """Load both snapshots from a store in which one file is damaged; where loads do not need it, verify."""
    copy = MemoryStore()
    copy.files = {**store.files, file: data}
    told = False
    for number, expected in enumerate(contents):
        repository = Repository(copy)
        try:
            manifest = repository.manifest(repository.resolve(f"id:{number}"))
            leaves = manifest.load(expected).leaves
        except CorruptionError as error:
            told = True
            if error.file != file or (file.startswith("packs/") and error.name not in expected):
                return Verdict(unnamed=str(error))
        except SafepointError as error:
            return Verdict(unnamed=repr(error))
        else:
            if not same(leaves, expected):
                return Verdict(silent=True)
    if not told:
        damage = Repository(copy).verify().damage
        told = bool(damage)
        if any(one.file != file for one in damage):
            return Verdict(unnamed=str(damage))
    return Verdict(silent=not told)


def random_change(rng: Random, *, first: int = 0) -> Change:
    """A flipped bit, an end cut off, a page zeroed, overwritten by another or swapped with it."""

    def flip(data: bytearray) -> str:
        at, bit = rng.randrange(first, len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        return f"bit {bit} of byte {at}"

    def cut(data: bytearray) -> str:
        at = rng.randrange(first, len(data))
        del data[at:]
        return f"cut to {at}"

    def page(data: bytearray) -> str:
        num = max(1, len(data) // PAGE)
        one, other = (rng.randrange(num) * PAGE for _ in range(2))
        before = bytes(data)
        kind = rng.choice(["zero", "duplicate", "swap"])
        mine, theirs = before[one : one + PAGE], before[other : other + PAGE]
        data[one : one + PAGE] = bytes(len(mine)) if kind == "zero" else theirs
        if kind == "swap":
            data[other : other + PAGE] = mine
        return f"{kind} pages at {one} and {other}" if bytes(data) != before else ""

    return rng.choice([flip, flip, flip, flip, cut, page])


def every_change(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every flipped bit and every length."""
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield f"bit {bit} of byte {at}", bytes(changed)
        yield f"cut to {at}", data[:at]


def contents_of_small() -> list[dict[str, Any]]:
    return [content(), content() | {"model/b": np.arange(30, 60, dtype=np.int16)}]


def test_no_damage_of_a_document_is_silent_or_unnamed(torture: Torture) -> None:
    store, contents = small_repository(), contents_of_small()
    changes = [
        (file, what, changed)
        for file, data in store.files.items()
        if not file.startswith("packs/")
        for what, changed in every_change(data)
    ]
    chosen = changes if torture.report.scale >= 0.5 else torture.rng.sample(changes, torture.budget(4_000, 40_000))
    for file, what, changed in chosen:
        verdict = judge(store, file, changed, contents)
        assert verdict == Verdict(), f"{what} of {file}: {torture.replay}"
    every = "every bit and every length" if len(chosen) == len(changes) else f"of {len(changes):,}"
    torture.record("Damaged documents", len(chosen), f"{every} of safepoint.json, snapshots, marks, manifests")


def test_no_damage_of_a_pack_is_silent_or_unnamed(torture: Torture) -> None:
    store, contents = small_repository(), contents_of_small()
    packs = [name for name in store.files if name.startswith("packs/")]
    tried = 0
    while tried < torture.budget(3_000, 60_000):
        file = torture.rng.choice(packs)
        data = bytearray(store.files[file])
        if what := random_change(torture.rng)(data):
            verdict = judge(store, file, bytes(data), contents)
            assert verdict == Verdict(), f"{what} of {file}: {torture.replay}"
            tried += 1
    torture.record(
        "Damaged packs", tried, "flipped bits, cuts, pages zeroed, duplicated, swapped: on load or by verify"
    )


def test_no_damage_of_a_model_file_is_silent_or_unnamed(torture: Torture, disk: Path) -> None:
    path = disk / "model"
    write_model_file(path, tree_of(content()), structure={"class": "test"}, format="test")
    whole = path.read_bytes()
    expected = content()
    tried = 0
    while tried < torture.budget(3_000, 40_000):
        data = bytearray(whole)
        what = random_change(torture.rng)(data)
        if not what:
            continue
        path.write_bytes(data)
        with pytest.raises(CorruptionError) as caught:
            assert same(read_model_file(path).load().leaves, expected), f"{what}: {torture.replay}"
        assert caught.value.file == str(path), f"{what}: {torture.replay}"
        tried += 1
    torture.record("Damaged whole-model files", tried, "flipped bits, cuts, pages zeroed, duplicated, swapped")


def test_reading_without_checks_is_caught(torture: Torture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself is tested: a reader that compares nothing must be found out."""
    store, contents = small_repository(), contents_of_small()
    (file, *_) = (name for name in store.files if name.startswith("packs/"))
    monkeypatch.setattr(read, "_compare", lambda piece, found: None)
    silent = 0
    for _ in range(50):
        data = bytearray(store.files[file])
        if random_change(torture.rng, first=2 * PAGE)(data):
            silent += judge(store, file, bytes(data), contents).silent
    assert silent > 10
    torture.record("Damage, broken on purpose", 50, "no checksum compared", controls=f"{silent} silent loads")
