"""Trees for tests, and reading them back."""

from __future__ import annotations

from typing import Any

import numpy as np

from safepoint.repository import Repository, Snapshot
from safepoint.tree import StateTree, Tensor


def tree_of(leaves: dict[str, Any]) -> StateTree:
    return StateTree({name: Tensor.of(x) if isinstance(x, np.ndarray) else x for name, x in leaves.items()})


def load(repository: Repository, reference: str | int | Snapshot = "latest") -> dict[str, Any]:
    snapshot = reference if isinstance(reference, Snapshot) else repository.resolve(reference)
    manifest = repository.manifest(snapshot)
    leaves = manifest.load(manifest.tree.leaves).leaves
    return {name: leaf.numpy() if isinstance(leaf, Tensor) else leaf for name, leaf in leaves.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected) or set(found) == set(expected)
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray):
            got = found[name]
            assert (got.shape, got.dtype.newbyteorder("=")) == (wanted.shape, wanted.dtype.newbyteorder("=")), name
            assert got.tobytes() == wanted.astype(wanted.dtype.newbyteorder("<")).tobytes(), name
        else:
            assert type(found[name]) is type(wanted), name
            same = found[name] == wanted if isinstance(wanted, int) else repr(found[name]) == repr(wanted)
            assert same, name
