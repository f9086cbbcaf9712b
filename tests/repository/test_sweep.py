"""`repository.collect.sweep`: what is not named goes, of `moved/` what no longer holds; strangers' files stay."""

from __future__ import annotations

import pytest

from safepoint.repository.collect import sweep
from safepoint.repository.layout import manifest_file, moved_file, pack_file
from safepoint.store import MemoryStore

A, B = "a" * 24, "b" * 24


def left(files: list[str], **needed: object) -> tuple[list[str], int]:
    store = MemoryStore()
    for name in files:
        store.create(name, b"12345")
    freed = sweep(store, **{"manifests": frozenset(), "packs": frozenset(), **needed})  # type: ignore[arg-type]
    return sorted(store.files), freed


def test_packs_and_manifests_that_are_not_named_go() -> None:
    files = [pack_file(A), pack_file(B), manifest_file(A), manifest_file(B)]
    assert left(files, packs={A}, manifests={B}) == ([manifest_file(B), pack_file(A)], 10)
    assert left(files) == ([], 20)


def test_files_of_strangers_stay() -> None:
    files = ["manifests/notes.json", f"moved/{A}.json", "packs/README.txt", f"packs/{'A' * 24}.safetensors"]
    assert left(files) == (sorted(files), 0)


@pytest.mark.parametrize(
    ("moved", "stay"),
    [
        (None, []),
        ({}, []),
        ({A: 0}, [(A, 0), (A, 1), (A, 2)]),
        ({A: 1}, [(A, 1), (A, 2)]),
        ({A: 2}, [(A, 2)]),
        ({A: 2, B: 0}, [(A, 2), (B, 0)]),
        ({B: 5}, []),
    ],
)
def test_of_what_is_known_about_a_pack_the_newest_stays(
    moved: dict[str, int] | None, stay: list[tuple[str, int]]
) -> None:
    files = [moved_file(A, 0), moved_file(A, 1), moved_file(A, 2), moved_file(B, 0)]
    assert left(files, moved=moved) == (sorted(moved_file(*about) for about in stay), 5 * (4 - len(stay)))
