"""Old checkpoints into a repository, as its history: what `safepoint import` does.

Invariant: a snapshot is committed as any other, each on its own; what cannot be read is told and holds nothing up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from safepoint.api.convert import tracked_names, tracked_tree
from safepoint.api.old_checkpoints import Facts, Old, facts_of, find
from safepoint.api.open import Tensors
from safepoint.api.open import open as open_any
from safepoint.errors import (
    CorruptionError,
    ExistsError,
    MismatchError,
    NotFoundError,
    SafepointError,
    UnsupportedError,
    UntrustedError,
)
from safepoint.repository import Progress, Repository, Snapshot
from safepoint.tree import StateTree, select

SOURCE = "imported from"
"""What says of a snapshot, in its environment, which checkpoint it was; and the bytes of that."""
_BYTES = "imported bytes"

_UNREADABLE = (CorruptionError, MismatchError, NotFoundError, UnsupportedError, UntrustedError)
"""Errors that are about one checkpoint; a disk that refuses is about all of them."""


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that can be read.

    Attributes:
        old: where it is.
        facts: its step, metrics and time.
        kind: of the file.
        num_tensors: that a snapshot of it has.
        num_bytes: of those.
    """

    old: Old
    facts: Facts
    kind: str
    num_tensors: int
    num_bytes: int

    @property
    def step(self) -> int:
        """Its step; only those that have one are candidates."""
        assert self.facts.step is not None
        return self.facts.step


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that is not imported.

    Attributes:
        path: where it is.
        why: in a line.
        error: that reading it raised, or None.
    """

    path: Path
    why: str
    error: SafepointError | None = None


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to do.

    Attributes:
        into: the repository's place.
        new: to be imported, in the order of their steps.
        there: imported before.
        skipped: what is left out, and why.
        newest: number of the newest snapshot that was there, or None.
    """

    into: str
    new: tuple[Candidate, ...]
    there: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    newest: int | None
    patterns: tuple[str, ...] = field(default=())


def plan(paths: Sequence[str], into: str, *, patterns: Sequence[str] = ()) -> Plan:
    """Look at checkpoints and at a repository, and say what an import would do; changes nothing.

    Args:
        paths: files, or folders of them.
        into: path of the repository.
        patterns: globs over the names in a snapshot; all others are left out.

    Raises:
        NotFoundError: a path leads nowhere, or a folder has no checkpoint.
        ExistsError: the repository is of a run that was not imported: two histories would be mixed.
    """
    history = _imported(into)
    known = {(s.environment[SOURCE], s.step, s.environment.get(_BYTES)) for s in history}
    last = max((snapshot.step for snapshot in history), default=-1)
    new: dict[int, Candidate] = {}
    there: list[Candidate] = []
    skipped: list[Skipped] = []
    for found in _candidates(find([Path(path) for path in paths]), tuple(patterns)):
        if isinstance(found, Skipped):
            skipped.append(found)
        elif (found.old.name, found.step, str(found.num_bytes)) in known:
            there.append(found)
        elif found.step <= last:
            skipped.append(Skipped(found.old.path, f"of step {found.step}, and {into} has step {last} already"))
        elif found.step in new:
            twin = new[found.step].old.path
            skipped.append(Skipped(found.old.path, f"of step {found.step}, as {twin} is"))
        else:
            new[found.step] = found
    order = tuple(new[step] for step in sorted(new))
    newest = max((snapshot.number for snapshot in history), default=None)
    return Plan(into, order, tuple(there), tuple(skipped), newest, tuple(patterns))


def carry_out(planned: Plan, *, progress: Progress | None = None) -> tuple[list[tuple[Candidate, Snapshot]], Plan]:
    """Import what a plan says, oldest first, each a snapshot whose parent is the one before.

    Returns:
        What was imported, and the plan with what could not be read added to `skipped`.

    Raises:
        ConflictError: another writer committed meanwhile.
        StoreError: the disk refused; what was committed before stays.
    """
    done: list[tuple[Candidate, Snapshot]] = []
    skipped = list(planned.skipped)
    newest = planned.newest
    total = sum(candidate.num_bytes for candidate in planned.new)
    before = 0
    for candidate in planned.new:

        def tell(here: int, _of: int, before: int = before) -> None:
            if progress is not None:
                progress(before + here, total)

        try:
            snapshot = _import(candidate, planned, newest, tell)
        except _UNREADABLE as error:
            skipped.append(Skipped(candidate.old.path, error.message, error))
        else:
            newest = snapshot.number
            done.append((candidate, snapshot))
        before += candidate.num_bytes
    return done, replace(planned, skipped=tuple(skipped))


def _import(candidate: Candidate, planned: Plan, newest: int | None, progress: Progress) -> Snapshot:
    with open_any(candidate.old.path) as tensors:
        repository = Repository(planned.into, clock=lambda: candidate.facts.time)
        return repository.commit(
            _tree(tensors, planned.patterns),
            step=candidate.step,
            metrics=candidate.facts.metrics,
            parent=newest,
            newest=newest,
            environment={SOURCE: candidate.old.name, _BYTES: str(candidate.num_bytes)},
            progress=progress,
        )


def _imported(into: str) -> list[Snapshot]:
    """The snapshots of a repository that was made by imports; none, where there is none yet.

    Raises:
        ExistsError: it is a run's own, or no repository.
    """
    repository = Repository(into)
    if not repository.exists:
        place = Path(into)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ExistsError(f"{into} is not empty and no repository", hint="choose another path for --into")
        return []
    history = list(repository.history()[0].values())
    own = next((snapshot for snapshot in history if SOURCE not in snapshot.environment), None)
    if own is not None:
        raise ExistsError(
            f"{into} is the history of a run, and importing would mix two",
            expected="a new folder, or a repository that was imported",
            found=f"snapshot {own.number}, which was saved there",
            hint="choose another path for --into",
        )
    return history


def _candidates(found: Sequence[Old], patterns: tuple[str, ...]) -> Iterator[Candidate | Skipped]:
    for old in found:
        try:
            with open_any(old.path) as tensors:
                facts = facts_of(old, tensors)
                tree = _tree(tensors, patterns)
                kind = tensors.kind
        except SafepointError as error:
            yield Skipped(old.path, error.message, error)
            continue
        if facts.step is None:
            yield Skipped(old.path, "nothing in it, nor in its name, says of which step it is")
        else:
            yield Candidate(old, facts, kind, len(tree.tensors), tree.num_bytes)


def _tree(tensors: Tensors, patterns: tuple[str, ...]) -> StateTree:
    plain: dict[str, Any] = dict(tensors.plain)
    names = tracked_names(tensors.tree.leaves)
    leaves = {names[name]: plain.get(name, leaf) for name, leaf in tensors.tree.leaves.items()}
    if patterns:
        leaves = {name: leaves[name] for name in select(leaves, patterns)}
    tree = tracked_tree(leaves)
    if not tree.tensors:
        raise NotFoundError(f"{tensors.location} has no tensors")
    return tree
