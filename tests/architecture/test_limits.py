"""FORMAT.md lists the limits that hold, each of them once; what is written to it is refused beyond them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tests.repository.trees import tree_of

from safepoint import limits
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository import Repository
from safepoint.store import MemoryStore

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"\n## Limits\n(.*?)\n## ", (ROOT / "FORMAT.md").read_text(encoding="utf-8"), re.DOTALL)

# How the page spells each of them.
SPELLED = {
    "MAX_DOCUMENT_BYTES": "| sealed document | 16 MiB |",
    "MAX_MANIFEST_BYTES": "| manifest | 1 GiB |",
    "MAX_HEADER_BYTES": "| header of a safetensors file | 100,000,000 bytes |",
    "MAX_BLOCK_BYTES": "| block | 16 MiB |",
    "MAX_TENSORS": "| leaves of a snapshot, entries of a header | 10,000,000 each |",
    "MAX_RANK": "| sizes in a shape; one of them | 64; 2^48 |",
    "MAX_DIMENSION": "| sizes in a shape; one of them | 64; 2^48 |",
    "MAX_NAME_LENGTH": "| name; tag | 1024; 100 characters |",
    "MAX_TAG_LENGTH": "| name; tag | 1024; 100 characters |",
    "MAX_DEPTH": "| skeleton; config | 80; 64 levels |",
    "MAX_CONFIG_DEPTH": "| skeleton; config | 80; 64 levels |",
    "MAX_MOVES": "| moves of one block | 64 |",
    "MAX_KEY_BYTES": "| file of a key or a signature | 64 KiB |",
}


def spellings(value: int) -> set[str]:
    units = {f"{value >> bits} {unit}" for bits, unit in ((10, "KiB"), (20, "MiB"), (30, "GiB")) if value >> bits}
    return {f"{value:,}", str(value), f"2^{value.bit_length() - 1}", *units}


def test_the_page_lists_every_limit() -> None:
    assert SECTION is not None
    names = {name for name in vars(limits) if name.startswith("MAX_")}
    assert names == SPELLED.keys()
    for name, row in SPELLED.items():
        assert row in SECTION[1], name
        assert any(text in row for text in spellings(getattr(limits, name))), name


def test_a_manifest_beyond_its_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safepoint.repository.commit.MAX_MANIFEST_BYTES", 1000)
    store = MemoryStore()
    with pytest.raises(UnsupportedError, match="manifest of this state is too long"):
        Repository(store).commit(tree_of({f"w{n}": np.ones(1) for n in range(10)}))
    assert store.list("snapshots") == store.list("packs") == []


def test_more_leaves_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    Repository(store).commit(tree_of({f"w{n}": np.ones(1) for n in range(10)}))
    monkeypatch.setattr("safepoint.repository.manifest.MAX_TENSORS", 9)
    repository = Repository(store)
    with pytest.raises(CorruptionError, match="more than 9 leaves"):
        repository.manifest(repository.resolve())
