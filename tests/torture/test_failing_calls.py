"""The k-th system call fails, for every k, every error, once or for ever: told, and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.torture.faults import KINDS, BadDay, bad_day
from tests.torture.life import Known, Step, check_survival, collect, prune, save, save_in_background, tag
from tests.torture.report import Torture

from safepoint.errors import CorruptionError, ExistsError, SafepointError
from safepoint.repository import Repository
from safepoint.store import LocalStore
from safepoint.store.files import TEMPORARY, LocalSink, sync_folder

LIFE: list[Step] = [
    save(0), save_in_background(1), tag("latest", "kept"), save(2), prune(1), collect, save_in_background(3)
]  # fmt: skip


def live(root: Path, steps: Sequence[Step]) -> Known:
    """Go on after each error; a save that was refused may have become visible all the same."""
    known = Known()
    repository = Repository(root)
    for step in steps:
        with contextlib.suppress(SafepointError):
            step(repository, known)
    return known


def number_of_calls(disk: Path) -> int:
    with bad_day(BadDay(str(disk / "counted"))) as day:
        live(disk / "counted", LIFE)
    return len(day.done)


def suffer(root: Path, day: BadDay) -> None:
    """Live through a bad day, and check on the morning after."""
    with bad_day(day):
        known = Known()
        repository = Repository(root)
        for step in LIFE:
            try:
                step(repository, known)
            except SafepointError:
                with undisturbed(day):
                    notice(root, known)
    notice(root, known)
    check_survival(LocalStore(root), known)
    assert list(root.rglob(f"{TEMPORARY}*")) == []


@contextlib.contextmanager
def undisturbed(day: BadDay) -> object:
    at, day.at = day.at, None
    count = len(day.done)
    try:
        yield
    finally:
        day.at = at
        del day.done[count:]


def notice(root: Path, known: Known) -> None:
    """What a refused save may have left, whole: everybody can see it."""
    if known.attempted is None:
        return
    repository = Repository(root)
    snapshots = repository.history()[0] if repository.exists else {}
    if (number := max(snapshots, default=-1)) >= 0 and number not in known.content:
        known.content[number] = known.attempted
    known.attempted = None


def test_any_call_may_fail_in_any_way_once_or_for_ever(torture: Torture, disk: Path) -> None:
    count = number_of_calls(disk)
    cases = list(itertools.product(range(count), KINDS, (False, True)))
    budget = torture.budget(500, 5_000)
    chosen = cases if budget >= len(cases) else torture.rng.sample(cases, budget)
    for at, kind, lasting in chosen:
        root = disk / f"{at}-{kind}-{lasting}"
        day = BadDay(str(root), at=at, kind=kind, lasting=lasting)
        try:
            suffer(root, day)
        except BaseException as error:
            failing = day.done[at] if at < len(day.done) else "?"
            raise AssertionError(f"call {at} ({failing}), {kind}, for ever: {lasting}; {torture.replay}") from error
        shutil.rmtree(root, ignore_errors=True)
    what = f"k of {count} calls, {len(KINDS)} errors, once or for ever"
    torture.record("Failing system calls", len(chosen), f"{what}{'' if chosen is cases else f', of {len(cases):,}'}")


def commit_ignoring_errors(self: LocalSink, num_bytes: int) -> None:
    os.ftruncate(self._descriptor, num_bytes)
    with contextlib.suppress(OSError):
        os.fsync(self._descriptor)
    try:
        os.link(self._temporary, self._path)
    except FileExistsError:
        raise ExistsError(self._path.name) from None
    with contextlib.suppress(OSError):
        sync_folder(self._path.parent)
    self.abort()


def write_once(self: LocalSink, offset: int, data: NDArray[np.uint8]) -> None:
    os.pwritev(self._descriptor, [data.data], offset)


BROKEN: dict[str, tuple[str, Callable[..., None], str, str]] = {
    "fsync's errors ignored": ("commit", commit_ignoring_errors, "fsync", "EIO"),
    "short writes believed": ("write", write_once, "pwritev", "short"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_store_that_ignores_what_it_is_told_is_caught(
    broken: str, torture: Torture, disk: Path, monkeypatch: pytest.MonkeyPatch, without_probe: None
) -> None:
    method, function, call, kind = BROKEN[broken]
    monkeypatch.setattr(LocalSink, method, function)
    with bad_day(BadDay(str(disk / "counted"), calls=(call,))) as day:
        live(disk / "counted", LIFE)
    caught = 0
    for at in range(len(day.done)):
        root = disk / f"{at}"
        try:
            suffer(root, BadDay(str(root), at=at, kind=kind, calls=(call,)))
        except (AssertionError, CorruptionError):
            caught += 1
    assert caught
    torture.record("Failing system calls, broken on purpose", len(day.done), broken, controls=f"{caught} times")
