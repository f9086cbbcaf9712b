"""Words that the glossary rules out do not appear in the names of modules, classes and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "safepoint"

# The word, and what we say instead.
FORBIDDEN = {
    "backend": "store, adapter, format or integration",
    "blob": "pack",
    "chunk": "block",
    "eviction": "retention",
    "fingerprint": "digest",
    "handler": "adapter, format or integration",
    "hash": "digest or checksum",
}
NO_MODULES = {"common", "core", "helper", "helpers", "util", "utils"}


def words(name: str) -> set[str]:
    """`read_allBlobs` -> {read, all, blobs, blob}."""
    found = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return found | {word.removesuffix("s") for word in found} | {word.removesuffix("es") for word in found}


def public_names(node: ast.AST) -> Iterator[str]:
    """Names of public classes and functions, and of what is public inside them; not of local functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            yield child.name
            if isinstance(child, ast.ClassDef):
                yield from public_names(child)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from public_names(child)


def offences(module: Path, text: str) -> list[str]:
    names = [part for part in module.with_suffix("").parts if not part.startswith("_")]
    found = [f"{module}: no module is called {name!r}" for name in names if name in NO_MODULES]
    for name in [*names, *public_names(ast.parse(text))]:
        bad = words(name) & FORBIDDEN.keys()
        if "keras" in words(" ".join([name, *module.parts])):
            bad -= {"backend"}  # Keras' own word for what it runs on
        found += [f"{module}: {name!r} says {word!r}; say {FORBIDDEN[word]}" for word in sorted(bad)]
    return found


def test_public_names_use_only_the_words_of_the_glossary() -> None:
    modules = sorted(SOURCE.rglob("*.py"))
    assert modules
    assert [line for m in modules for line in offences(m.relative_to(SOURCE), m.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "module, text",
    [
        ("store/utils.py", ""),
        ("core/names.py", ""),
        ("store/blobs.py", ""),
        ("tree/names.py", "class BackendStore: ..."),
        ("tree/names.py", "class Pack:\n    def read_chunks(self): ..."),
        ("codec/digest.py", "def hash_bytes(): ..."),
        ("codec/digest.py", "if True:\n    def tensorHashes(): ..."),
    ],
)
def test_a_forbidden_word_is_found(module: str, text: str) -> None:
    assert offences(Path(module), text)


@pytest.mark.parametrize(
    "module, text",
    [
        ("tree/names.py", "class Name:\n    def __hash__(self): ..."),
        ("tree/names.py", "def _hash(): ..."),
        ("adapters/keras.py", "def backend(): ..."),
        ("adapters/find.py", "def handles(): ..."),
    ],
)
def test_other_words_are_not(module: str, text: str) -> None:
    assert offences(Path(module), text) == []
