"""A local store whose n-th system call of a kind fails, for every n."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.crash.scenario import Known, Step, check_survival, collect, content_of, prune, save, tag, tree_of

from safepoint.errors import SafepointError, StoreError
from safepoint.repository import Repository
from safepoint.store import LocalStore, replace_file
from safepoint.store.files import TEMPORARY

SHORT_LIFE: list[Step] = [save(0), save(1), tag("latest", "kept"), save(2), prune(1), collect, save(3)]
CALLS = ["link", "unlink", "fsync", "ftruncate", "pwritev", "posix_fallocate", "open", "close"]


class FailingCall:
    """Stands for a function of `os`: its n-th call that concerns the repository fails."""

    def __init__(self, name: str, at: int | None, number: int, root: Path) -> None:
        self.real: Callable[..., Any] = getattr(os, name)
        self.name, self.at, self.number, self.root = name, at, number, str(root)
        self.count = 0
        self.failed_on: tuple[int, int] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.concerns(arguments[0]):
            return self.real(*arguments, **options)
        self.count += 1
        if self.count - 1 == self.at:
            if isinstance(arguments[0], int):
                status = os.fstat(arguments[0])
                self.failed_on = (status.st_dev, status.st_ino)
            if self.name == "close":  # Linux closes the descriptor even when it reports an error
                self.real(*arguments, **options)
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*arguments, **options)

    def concerns(self, target: Any) -> bool:
        try:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else os.fspath(target)
        except OSError:
            return False
        return str(path).startswith(self.root)


def live_with_errors(root: Path) -> Known:
    """Go on after each error; a refused save may have become visible all the same."""
    known = Known()
    repository = Repository(root)
    for step in SHORT_LIFE:
        try:
            step(repository, known)
        except SafepointError:
            if known.attempted is not None:
                snapshots = Repository(root).history()[0] if Repository(root).exists else {}
                if (number := max(snapshots, default=-1)) not in known.content and number >= 0:
                    known.content[number] = known.attempted
                known.attempted = None
    return known


@pytest.mark.usefixtures("direct_io")
@pytest.mark.parametrize(
    ("direct_io", "name"),
    [*(("direct", name) for name in CALLS), *(("buffered", name) for name in ("pwritev", "fsync", "posix_fallocate"))],
    indirect=["direct_io"],
)
def test_any_system_call_may_fail_once(name: str, monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    # How many there are is not counted beforehand: which blocks a save reads back depends on the random names of packs.
    for at in itertools.count():
        root = disk / f"{name}-{at}"
        with monkeypatch.context() as patch:
            failing = FailingCall(name, at, errno.ENOSPC if at % 2 else errno.EIO, root)
            patch.setattr(os, name, failing)
            known = live_with_errors(root)
        check_survival(LocalStore(root), known)
        assert list(root.rglob(f"{TEMPORARY}*")) == []
        if failing.count <= at:
            break
    assert at >= 4, "a save calls it: at least once for each of the four"


def test_a_file_whose_fsync_failed_is_never_used_and_the_fsync_never_retried(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    with monkeypatch.context() as patch:
        counting = FailingCall("fsync", None, 0, disk)
        patch.setattr(os, "fsync", counting)
        Repository(disk / "counted").commit(tree_of(content_of(0)))
    real_fsync = os.fsync
    for at in range(counting.count):
        root = disk / f"once-{at}"
        failed: list[tuple[int, int]] = []
        count = 0

        def fsync(descriptor: int, at: int = at, failed: list[tuple[int, int]] = failed) -> None:
            nonlocal count
            count += 1
            status = os.fstat(descriptor)
            name = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not name.is_dir():
                assert (status.st_dev, status.st_ino) not in failed, f"fsync of {name} was retried"
            if count - 1 == at:
                failed.append((status.st_dev, status.st_ino))
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real_fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with contextlib.suppress(StoreError):
                Repository(root).commit(tree_of(content_of(0)))
            Repository(root).commit(tree_of(content_of(1)))
        for path in root.rglob("*"):
            if path.is_file():
                assert (path.stat().st_dev, path.stat().st_ino) not in failed


def test_a_failed_fsync_is_an_error_and_older_commits_stay(monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    repository = Repository(disk / "r")
    known = Known()
    save(0)(repository, known)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="durable") as caught:
            repository.commit(tree_of(content_of(1)))
    assert caught.value.errno == errno.EIO
    assert Repository(disk / "r").history()[0].keys() == {0}
    check_survival(LocalStore(disk / "r"), known)


def replace_with(sink: Any, data: bytes) -> None:
    sink.write_small(data)
    sink.commit(len(data))


@pytest.mark.usefixtures("direct_io")
@pytest.mark.parametrize("name", ["fsync", "ftruncate", "pwritev", "replace"])
def test_a_replaced_file_stays_the_old_one_when_a_call_fails(
    name: str, monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    path = disk / "model"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, FailingCall(name, 0, errno.EIO, disk))
        sink = replace_file(path)
        with pytest.raises(StoreError), contextlib.closing(SimpleNamespace(close=sink.abort)):
            replace_with(sink, b"newer")
    assert path.read_bytes() == b"old"
    assert list(disk.iterdir()) == [path]


def test_a_disk_that_is_too_small_says_what_is_free(monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    monkeypatch.setattr(os, "posix_fallocate", FailingCall("posix_fallocate", 0, errno.ENOSPC, disk))
    with pytest.raises(StoreError, match="bytes are free") as caught:
        Repository(disk / "r").commit(tree_of(content_of(0)))
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError)
