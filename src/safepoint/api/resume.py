"""Resuming: the newest snapshot that is whole, its random state, and words about what was passed over."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from safepoint.adapters import random_states
from safepoint.api.announce import announce
from safepoint.api.checkpoint import Checkpoint
from safepoint.api.plan import Options, Source
from safepoint.api.ranks import Ranks
from safepoint.api.report import Report
from safepoint.api.tracked import RANDOM, capture_one, expand_all, scope_of
from safepoint.errors import CorruptionError, MismatchError, SafepointError
from safepoint.repository import Repository, Snapshot, lineage
from safepoint.tree import StateTree, Tensor


@final
@dataclass(frozen=True, slots=True)
class Resumption:
    """What a resume needs to know; see `CheckpointManager`."""

    checkpoint: Checkpoint
    repository: Repository
    keep_live: tuple[str, ...]
    random: bool
    config: Any
    ranks: Ranks

    def run(self, snapshots: Mapping[int, Snapshot], damaged: Mapping[int, CorruptionError]) -> tuple[Snapshot, Report]:
        """Restore the newest whole snapshot; the first process chooses it, all restore it.

        Raises:
            MismatchError: the objects are not those that were saved; nothing was changed.
            CorruptionError: no snapshot is whole; lists what is wrong with each.
        """
        done: list[tuple[Snapshot, Report]] = []

        def choose() -> int:
            done.append(self._newest_whole(snapshots, damaged))
            return done[0][0].number

        number = self.ranks.decide(choose, str, int)
        return done[0] if done else self._restore(snapshots[number])

    def _newest_whole(
        self, snapshots: Mapping[int, Snapshot], damaged: Mapping[int, CorruptionError]
    ) -> tuple[Snapshot, Report]:
        passed = {number: f"snapshot {number}: {error.message}" for number, error in damaged.items()}
        newest = max((*snapshots, *damaged))
        line = {s.number for s in lineage(snapshots)} if newest in snapshots else set()
        for number in sorted(snapshots, key=lambda n: (n in line, n), reverse=True):
            snapshot = snapshots[number]
            if snapshot.pruned:
                continue
            try:
                _, report = self._restore_or_heal(snapshot)
            except CorruptionError as error:
                passed[number] = f"snapshot {number} (step {snapshot.step}): {error.message}"
                continue
            newer = tuple(passed[n] for n in sorted(passed, reverse=True) if n > number)
            for why in newer:
                announce(f"passed over {why}", warning=True)
            _tell_config(snapshot.config, self.config)
            return snapshot, replace(report, passed_over=newer)
        raise CorruptionError(
            f"{self.repository.location} has snapshots, but none is whole; nothing was changed",
            found="\n            ".join(passed[n] for n in sorted(passed, reverse=True)) or "all were pruned",
            hint="safepoint verify tells what is damaged; resume(fresh=True) starts anew",
        )

    def _restore_or_heal(self, snapshot: Snapshot) -> tuple[Snapshot, Report]:
        """Restore; where tensors are damaged that the live objects still hold, as a frozen backbone, from there."""
        try:
            return self._restore(snapshot)
        except CorruptionError as error:
            if error.name is None or not self._heal(snapshot):
                raise
        announce(f"snapshot {snapshot.number} was damaged, and is whole again: the live objects held what it had lost")
        return self._restore(snapshot)

    def _heal(self, snapshot: Snapshot) -> bool:
        live: list[Tensor] = []
        tracked = expand_all(self.checkpoint.objects)
        scope = scope_of(tracked)
        with contextlib.suppress(SafepointError):  # what has no memory yet holds nothing
            for name, obj in tracked.items():
                live += capture_one(name, obj, scope).tensors.values()
        try:
            return self.repository.heal(snapshot, live)
        except SafepointError:  # a place that cannot be written: the damage is what to tell
            return False

    def _restore(self, snapshot: Snapshot) -> tuple[Snapshot, Report]:
        """Restore objects and random state; both are read and verified before either changes."""

        def view(source: Source) -> Source:
            return self.ranks.view(source, self.checkpoint.objects)

        with self.repository.reading():
            states = _load_random(view(self.repository.manifest(snapshot))) if self.random else {}
            _try_random(states)
            options = Options(keep_live=self.keep_live)
            report = self.checkpoint.restore_from(self.repository, snapshot, options, view=view)
        restored = _restore_random(states)
        ignored = tuple(name for name in report.ignored if not name.startswith((f"{RANDOM}/", "ranks/")))
        return snapshot, replace(report, ignored=ignored, random=restored)


def _load_random(source: Source) -> dict[str, StateTree]:
    """The random states in a snapshot, read and verified."""
    prefix = f"{RANDOM}/"
    if RANDOM not in source.tree.names():
        return {}
    skeleton = source.tree.child(RANDOM).skeleton
    leaves = source.load([name for name in source.tree.leaves if name.startswith(prefix)]).leaves
    tree = StateTree({name.removeprefix(prefix): leaf for name, leaf in leaves.items()}, skeleton)
    return {name: tree.child(name) for name in tree.names()}


def _try_random(states: Mapping[str, StateTree]) -> None:
    """Whether every random state can be restored, found out before anything changes.

    They are restored last: making an optimizer's slots may draw numbers.

    Raises:
        MismatchError: one cannot.
    """
    live = random_states()
    before = {name: state.capture() for name, state in live.items()}
    try:
        for name in states.keys() & live.keys():
            live[name].restore(states[name])
    except Exception as error:
        raise MismatchError(
            "the saved random state does not fit this version of its library; nothing was changed",
            found=f"{type(error).__name__}: {error}",
            hint="CheckpointManager(random=False) resumes without it",
        ) from error
    finally:
        for name, state in live.items():
            state.restore(before[name])


def _restore_random(states: Mapping[str, StateTree]) -> tuple[str, ...]:
    live = random_states()
    for name in states.keys() & live.keys():
        live[name].restore(states[name])
    for name in states.keys() - live.keys():
        announce(f"the random state of {name} was saved, but {name} is not in use here: not restored", warning=True)
    return tuple(name for name in live if name in states)


def _tell_config(saved: Any, live: Any, path: str = "config") -> None:
    """One line for each value that the new run set differently."""
    if live is None or saved is None:
        return
    if isinstance(saved, dict) and isinstance(live, Mapping):
        ours = {str(key): value for key, value in live.items()}
        for key in dict.fromkeys([*saved, *ours]):
            if key in saved and key in ours:
                _tell_config(saved[key], ours[key], f"{path}.{key}")
            else:
                announce(f"{path}.{key}: {'only now' if key in ours else 'only in the snapshot'}")
    elif repr(saved) != repr(live) and saved != live:
        announce(f"{path}: {live!r} now, {saved!r} in the snapshot")
