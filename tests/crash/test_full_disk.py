"""A disk that really is full."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.crash.processes import Child
from tests.crash.scenario import Known, check_content, check_survival, tree_of

from safepoint.errors import StoreError
from safepoint.repository import Repository, write_model_file
from safepoint.store import LocalStore
from safepoint.store.files import TEMPORARY

MIB = 1 << 20


def state(step: int, num_bytes: int) -> dict[str, object]:
    rng = np.random.default_rng(step)
    return {"w": rng.integers(0, 255, num_bytes, dtype=np.uint8), "step": step}


@contextlib.contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[Path | None]:
    """A file system of that size, or None where tests may not mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def used_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def fill_with_saves(place: Path) -> None:
    """Save until it is full: what was committed stays, nothing else does, and pruning makes room again."""
    repository, known = Repository(place / "run"), Known()

    def save_until_full() -> None:
        nonlocal before
        for step in range(100):
            before = used_bytes(place)
            content = state(step, MIB)
            known.content[repository.commit(tree_of(content), step=step).number] = content

    before = 0
    with pytest.raises(StoreError) as caught:
        save_until_full()
    assert caught.value.errno in {errno.ENOSPC, errno.EFBIG}
    assert list((place / "run").rglob(f"{TEMPORARY}*")) == []
    assert used_bytes(place) - before <= 64 << 10
    for snapshot in Repository(place / "run").snapshots:
        check_content(repository, snapshot, known.content[snapshot.number])


@pytest.mark.usefixtures("direct_io")
@pytest.mark.parametrize("num_bytes", range(1 * MIB, 6 * MIB, 811 << 10))
def test_a_full_disk_is_told_and_costs_only_the_save_that_did_not_fit(tmp_path: Path, num_bytes: int) -> None:
    with small_disk(tmp_path / "disk", num_bytes) as place:
        if place is None:
            in_a_limited_process(lambda: fill_one_file(tmp_path / "disk"))
            return
        fill_with_saves(place)
        with contextlib.suppress(StoreError):
            write_model_file(place / "run.model", tree_of(state(0, 8 * MIB)), structure={}, format="test")
            raise AssertionError("8 MiB cannot fit")
        assert not (place / "run.model").exists()
        repository = Repository(place / "run")
        if len(repository.snapshots) < 2:
            return
        known = Known({s.number: state(s.step, MIB) for s in repository.snapshots})
        known.maybe_pruned = {0}
        repository.delete("id:0")
        repository.collect()
        check_survival(LocalStore(place / "run"), known)


def fill_one_file(place: Path) -> None:
    """Where nothing can be mounted: no file may grow beyond a megabyte."""
    repository, known = Repository(place / "run"), Known()
    content = state(0, MIB // 2)
    known.content[repository.commit(tree_of(content)).number] = content
    with pytest.raises(StoreError):
        repository.commit(tree_of(state(1, 2 * MIB)))
    assert list((place / "run").rglob(f"{TEMPORARY}*")) == []
    check_survival(LocalStore(place / "run"), known)


def in_a_limited_process(work: Callable[[], None]) -> None:
    def limited(_say: Callable[[object], None]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        work()

    assert Child(limited).wait()[0] == 0


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    in_a_limited_process(lambda: fill_one_file(tmp_path))


@pytest.mark.usefixtures("direct_io")
def test_the_last_free_megabytes_can_be_used(tmp_path: Path) -> None:
    """Space is reserved in large steps, but never more than the state needs."""
    with small_disk(tmp_path / "disk", 41 * MIB) as place:
        if place is None:
            return
        repository = Repository(place / "run")
        content = state(0, 40 * MIB)
        check_content(repository, repository.commit(tree_of(content)), content)
