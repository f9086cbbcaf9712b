"""Only what was fsynced survives: states that a power cut could leave behind the store, enumerated.

The real store runs on a real folder while what it does is recorded; `safepoint.testing.power` says what may be left.
"""

from __future__ import annotations

import copy
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.torture.chapters import any_life
from tests.torture.life import (
    LIFE,
    Diary,
    Known,
    Step,
    check_state,
    check_survival,
    prune,
    save_in_background,
    tag,
    violates,
)
from tests.torture.report import Torture

from safepoint.errors import ExistsError
from safepoint.repository import Repository
from safepoint.store import LocalStore, files
from safepoint.store.files import LocalSink
from safepoint.testing.power import RecordedDisk, State, recorded

COMMIT = LocalSink.commit
BACKGROUND: list[Step] = [save_in_background(0), tag("latest", "kept"), save_in_background(1), prune(1)]


@dataclass
class Story:
    disk: RecordedDisk
    diary: Diary


def tell(place: Path, steps: list[Step]) -> Story:
    """Live through the steps, recording what is done to the disk and what was acknowledged when."""
    diary, known = Diary(), Known()
    with recorded(place) as disk:
        repository = Repository(place)
        diary.write(0, known)
        for step in steps:
            doomed = (
                {snapshot.number for snapshot in repository.snapshots if not snapshot.tags} if known.content else ()
            )
            known.maybe_pruned |= set(doomed)  # by a step that is cut short
            step(repository, known)
            diary.write(len(disk.operations), known)
    return Story(disk, diary)


def states_of(story: Story, torture: Torture, at_most: int) -> Iterator[tuple[int, State, Known]]:
    """States of all cuts, as many each; with what must be in them."""
    for cut in range(len(story.disk.operations) + 1):
        known = story.diary.at(cut)
        later = next((told for at, told in story.diary.entries if at > cut), known)
        # What was being saved or given up may be there, whole, or gone.
        known.attempted = next((later.content[number] for number in later.content if number not in known.content), None)
        known.maybe_pruned |= later.maybe_pruned
        for state in story.disk.states(cut, at_most=at_most, rng=torture.rng):
            yield cut, state, known


def visible(state: State) -> dict[str, bytes]:
    return {n: data for n, data in state.items() if n != "lock" and not n.rpartition("/")[2].startswith(".")}


def lives(torture: Torture) -> Iterator[list[Step]]:
    """The two above, then any others."""
    yield LIFE
    yield BACKGROUND
    while True:
        yield any_life(torture.rng)


def test_whatever_a_power_cut_leaves_has_all_that_was_acknowledged(torture: Torture, disk: Path) -> None:
    budget = torture.budget(10_000, 200_000)
    tried, lived, lived_on = 0, 0, 0
    different: set[int] = set()
    for steps in lives(torture):
        story = tell(disk / f"run-{lived}", steps)
        lived += 1
        for cut, state, known in states_of(story, torture, 100):
            tried += 1
            there = visible(state)
            key = hash((frozenset(there.items()), len(known.content), known.attempted is None))
            if key not in different:  # the same files and the same promises need no second look
                different.add(key)
                try:
                    check_state(there, known)
                except BaseException as error:
                    what = [str(operation) for operation in story.disk.operations[cut - 1 : cut]]
                    raise AssertionError(f"life {lived}, cut after {what}: {torture.replay}") from error
            if tried % 400 == 0:  # life goes on: the next save and collection clean up
                go_on(disk / f"state-{tried}", state, copy.deepcopy(known))
                lived_on += 1
        shutil.rmtree(disk / f"run-{lived - 1}")
        if tried >= budget:
            break
    what = f"crash states of {lived} lives, {len(different):,} of them different; {lived_on} lived on"
    torture.record("Simulated power loss", tried, what)


def go_on(place: Path, state: State, known: Known) -> None:
    for name, data in state.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    check_survival(LocalStore(place), known)
    shutil.rmtree(place)


def commit_without_fsync(self: LocalSink, num_bytes: int) -> None:
    recorded_fsync = os.fsync
    os.fsync = lambda descriptor: None if stat.S_ISREG(os.fstat(descriptor).st_mode) else recorded_fsync(descriptor)
    try:
        COMMIT(self, num_bytes)
    finally:
        os.fsync = recorded_fsync


def commit_named_before_fsync(self: LocalSink, num_bytes: int) -> None:
    os.ftruncate(self._descriptor, num_bytes)
    try:
        os.link(self._temporary, self._path)
    except FileExistsError:
        raise ExistsError(self._path.name) from None
    files.sync_folder(self._path.parent)
    os.fsync(self._descriptor)
    self.abort()


BROKEN: dict[str, tuple[object, str, Callable[..., None]]] = {
    "no fsync of files": (LocalSink, "commit", commit_without_fsync),
    "no fsync of folders": (files, "sync_folder", lambda folder: None),
    "named before fsync": (LocalSink, "commit", commit_named_before_fsync),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_protocol_is_caught(
    broken: str, torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch, without_probe: None
) -> None:
    monkeypatch.setattr(*BROKEN[broken])
    story = tell(disk / "run", LIFE)
    tried = caught = 0
    for _cut, state, known in states_of(story, torture, 12):
        tried += 1
        caught += violates(visible(state), known)
        if caught >= torture.budget(10, 1_000):
            break
    assert caught, broken
    torture.record("Simulated power loss, broken on purpose", tried, broken, controls=f"in {caught:,} states")
