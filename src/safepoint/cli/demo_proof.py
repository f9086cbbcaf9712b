"""The demo's proof: everything that two runs ended with, compared bit by bit, without their framework."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from safepoint.tree import Leaf, StateTree


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """How the newest snapshots of two runs compare.

    Attributes:
        num_tensors: compared: weights, optimizer state, the loss of every step, random state.
        num_values: compared.
        digests: BLAKE3 of all of it, for each run.
        difference: the first name that differs, or None.
    """

    num_tensors: int
    num_values: int
    digests: tuple[str, str]
    difference: str | None

    @property
    def equal(self) -> bool:
        return self.difference is None and self.digests[0] == self.digests[1]


def compare(reference: Path, resumed: Path) -> Proof:
    """Read both newest snapshots and compare every bit."""
    from safepoint.tree import Tensor

    one, other = _final_state(reference), _final_state(resumed)
    names = [*one.leaves, *(name for name in other.leaves if name not in one.leaves)]
    absent = object()
    difference = next(
        (
            name
            for name in names
            if _bits(name, one.leaves.get(name, absent)) != _bits(name, other.leaves.get(name, absent))
        ),
        None,
    )
    tensors = sum(isinstance(leaf, Tensor) for leaf in one.leaves.values())
    return Proof(tensors, len(one.leaves) - tensors, (_digest(one), _digest(other)), difference)


def _final_state(run: Path) -> StateTree:
    from safepoint.repository import Repository

    repository = Repository(run)
    manifest = repository.manifest(repository.resolve("latest"))
    return manifest.load(manifest.tree.leaves, verify="full")


def _bits(name: str, leaf: Leaf | Any) -> bytes:
    """What a leaf is, exactly: -0.0 is not 0.0, and True is not 1."""
    import json

    from safepoint.codec import encode_value
    from safepoint.tree import Tensor

    if isinstance(leaf, Tensor):
        return f"{name} {leaf.spec} ".encode() + leaf.read().tobytes()
    kind = type(leaf).__name__
    return f"{name} {kind} {json.dumps(encode_value(leaf)) if kind != 'object' else ''} ".encode()


def _digest(tree: StateTree) -> str:
    import blake3

    hasher = blake3.blake3()
    for name, leaf in sorted(tree.leaves.items(), key=lambda item: item[0]):
        hasher.update(_bits(name, leaf))
    return hasher.hexdigest()
