"""A life of a repository in small steps, through its public doors, and what must hold wherever it is cut short."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.crash.scenario import (
    Content,
    Known,
    Step,
    check_all,
    check_content,
    check_survival,
    collect,
    delete_oldest,
    prune,
    tag,
)

import safepoint
from safepoint.errors import CorruptionError
from safepoint.repository import Repository, Snapshot
from safepoint.store import MemoryStore, Store

# The same key every time: what signs must not depend on chance.
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

__all__ = ["Content", "Known", "Step", "check_content", "check_survival", "collect", "prune", "tag"]


def small_content(step: int) -> Content:
    """A state that is quick to write: something frozen, something that always changes, a value."""
    rng = np.random.default_rng(step)
    return {
        "state/frozen": np.arange(2500, dtype=np.float32),
        "state/w": rng.standard_normal((5, 600)).astype(np.float32),
        "state/note": f"after step {step}",
    }


def state_of(step: int) -> dict[str, Any]:
    """The live state with that content."""
    return {name.removeprefix("state/"): value for name, value in small_content(step).items()}


def save(step: int, **options: Any) -> Step:
    """A save that has returned is durable."""

    def run(repository: Repository, known: Known) -> None:
        known.attempted = small_content(step)
        checkpoint = safepoint.Checkpoint(state=state_of(step))
        acknowledge(known, checkpoint.save(repository.location, step=step, **options))

    return run


def save_in_background(step: int) -> Step:
    """A save through a manager: durable when `result()` has returned."""

    def run(repository: Repository, known: Known) -> None:
        known.attempted = small_content(step)
        state = state_of(step)
        manager = safepoint.CheckpointManager(
            safepoint.Checkpoint(state=state), repository.location, keep=[], random=False
        )
        if repository.exists:
            manager.resume()
            state.update(state_of(step))
        try:
            handle = manager.save(step, force=True)
            assert handle is not None
            acknowledge(known, handle.result())
        finally:
            manager.close()

    return run


def sign(repository: Repository, known: Known) -> None:
    """The newest snapshot is vouched for; the signature must hold whatever happens to packs later."""
    number = repository.sign("latest", KEY).number
    known.signed[number] = PUBLIC


def acknowledge(known: Known, snapshot: Snapshot) -> None:
    assert known.attempted is not None
    known.content[snapshot.number] = known.attempted
    known.tags[snapshot.number] = set(snapshot.tags)
    known.attempted = None


def compact(repository: Repository, known: Known) -> None:
    """Packs of which most is dead are written anew."""
    repository.compact()


def repair(repository: Repository, known: Known) -> None:
    """Nothing is damaged: it must do no harm."""
    repository.repair()


LIFE: list[Step] = [
    save(0), save(1), tag("latest", "kept"), sign, save(2), save(3, tags=["release"]), prune(1), collect, compact,
    save(4), sign, save(5), delete_oldest, collect, repair, save(6),
]  # fmt: skip


@dataclass
class Diary:
    """What the outside world had been told after so many operations."""

    entries: list[tuple[int, Known]] = field(default_factory=list)

    def write(self, operations: int, known: Known) -> None:
        self.entries.append((operations, copy.deepcopy(known)))

    def at(self, operations: int) -> Known:
        """What was known then."""
        return copy.deepcopy(max((e for e in self.entries if e[0] <= operations), key=lambda entry: entry[0])[1])


def check_state(files: dict[str, bytes], known: Known) -> None:
    """Whether a reader who finds these files has everything that was acknowledged, and nothing half.

    Raises:
        AssertionError, CorruptionError: it has not.
    """
    store = MemoryStore()
    store.files = files
    check_history(store, known)


def check_history(store: Store, known: Known) -> None:
    """The old history or the old history plus one, every content exact."""
    repository = Repository(store)
    if not repository.exists:
        assert not known.content
        return
    snapshots, damaged = repository.history()
    assert damaged == {}
    assert list(snapshots) == list(range(len(snapshots)))
    extra = snapshots.keys() - known.content.keys()
    assert known.content.keys() <= snapshots.keys()
    if extra:
        assert known.attempted is not None
        assert extra == {len(snapshots) - 1}
        check_content(repository, snapshots[len(snapshots) - 1], known.attempted)
    check_all(repository, snapshots, known)


def violates(files: dict[str, bytes], known: Known) -> bool:
    """Whether a negative control shows here."""
    try:
        check_state(files, known)
    except (AssertionError, safepoint.SafepointError, CorruptionError):
        return True
    return False


def run_life(place: Path, steps: Sequence[Step], known: Known) -> None:
    """All steps in a folder."""
    repository = Repository(place)
    for step in steps:
        step(repository, known)
