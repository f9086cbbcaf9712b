from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import CorruptionError, NotFoundError, SafepointError, StoreError
from safepoint.repository import Repository
from safepoint.store import LocalStore, MemoryStore, Store, aligned_buffer, replace_file, waits_for_disk
from safepoint.store.files import TEMPORARY
from safepoint.testing.store_suite import SharedStoreSuite


@pytest.mark.usefixtures("direct_io")
class TestLocalStore(SharedStoreSuite):
    def open_store(self, place: Path) -> Store:
        return LocalStore(place)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY}*"))


def test_no_temporary_file_stays_behind(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "a" / "b")
    store.create("packs/x", b"1")
    store.sink("packs/y").abort()
    with pytest.raises(SafepointError):
        store.create("packs/x", b"2")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "socket", "dangling"])
def test_what_is_no_regular_file_is_damage_and_is_never_followed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"1")
    path = tmp_path / "r" / "packs" / "b"
    (tmp_path / "secret").write_text("secret")
    if kind == "symlink":
        path.symlink_to(tmp_path / "secret")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(path.parent)  # the name of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("b")
    for operation in (store.read, store.size, lambda name: store.read_into(name, 0, np.zeros(1, np.uint8))):
        with pytest.raises(CorruptionError):
            operation("packs/b")
    with pytest.raises(SafepointError):
        store.create("packs/b", b"2")
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (tmp_path / "nowhere").exists()


def test_a_symlink_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "r")
    store.create("a", b"")
    (tmp_path / "r" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError), store.lock(exclusive=True):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_clean_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"1")
    (tmp_path / "r" / "packs" / f"{TEMPORARY}0123").write_bytes(b"12345")
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with store.lock(exclusive=True):
        assert store.clean() == 5
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"
    assert store.read("packs/a") == b"1"


def test_a_file_in_place_of_the_repository_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(NotFoundError, match="is a file"):
        LocalStore(path).exists()
    with pytest.raises(StoreError):
        LocalStore(path).create("a", b"")


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "r").mkdir()
    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, whom permissions do not stop
    with pytest.raises(StoreError, match="may write to"):
        LocalStore(tmp_path / "r").create("a", b"")


def test_a_replaced_file_is_the_old_one_until_commit(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    sink = replace_file(path)
    sink.write_small(b"newer")
    assert path.read_bytes() == b"old"
    sink.commit(5)
    assert path.read_bytes() == b"newer"
    aborted = replace_file(path)
    aborted.write_small(b"never")
    aborted.abort()
    assert path.read_bytes() == b"newer"
    assert leftovers(tmp_path) == []


def test_direct_writes_that_the_disk_refuses_go_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    refused = []

    def pwritev(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "no direct I/O after all")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    sink = LocalStore(tmp_path).sink("packs/a")
    page = aligned_buffer(4096)
    page[:] = 3
    for offset in (0, 4096, 8192):
        sink.write(offset, page)
    sink.commit(3 * 4096)
    assert LocalStore(tmp_path).read("packs/a") == b"\x03" * 3 * 4096
    assert len(refused) <= 1


@pytest.mark.parametrize("accepted", [0, 1, 3, 6])
def test_direct_io_that_is_refused_half_way_falls_back_and_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepted: int
) -> None:
    """While several threads write, and one of them is in the middle of a short write."""
    real, mutex, direct = os.pwritev, threading.Lock(), []

    def pwritev(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            with mutex:
                direct.append(offset)
                number = len(direct)
            if number > accepted:
                raise OSError(errno.EINVAL, "no direct I/O any more")
            if number == accepted:
                buffers = [buffers[0][:4096]]  # short: the rest is refused
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    rng = np.random.default_rng(0)
    leaves = {f"w{i}": rng.integers(0, 255, (7 << 20) + i, np.uint8) for i in range(12)}
    repository = Repository(tmp_path / "run")
    repository.commit(tree_of(leaves))
    assert repository.verify().ok
    assert_same(load(repository), leaves)
    assert len(direct) <= accepted + 3 + 1  # what the threads had begun, and no more


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [buffers[0][:1001]], offset))
    sink = LocalStore(tmp_path).sink("packs/a")
    page = aligned_buffer(8192)
    page[:] = np.arange(8192) % 251
    sink.write(0, page)
    sink.commit(8192)
    assert LocalStore(tmp_path).read("packs/a") == page.tobytes()


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.create("packs/a", bytes(range(256)) * 20)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:77]], offset))
    target = np.zeros(5000, np.uint8)
    store.read_into("packs/a", 3, target)
    assert target.tobytes() == (bytes(range(256)) * 20)[3:5003]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        LocalStore(tmp_path).create("packs/a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "packs" / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["listdir", "stat", "statvfs", "scandir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOSPC, errno.ESTALE])
def test_a_disk_that_cannot_be_looked_at_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Found by failing every system call: these were the operating system's own errors."""
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"1")
    real = getattr(os, call)

    def failing(path: object = ".", *arguments: object, **options: object) -> object:
        if str(path).startswith(str(tmp_path / "r")):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    for action in (
        store.clean,
        lambda: LocalStore(tmp_path / "r" / "deeper").create("packs/b", b"2"),
        lambda: store.list("packs"),
        store.exists,
    ):
        with contextlib.suppress(StoreError):
            action()


def test_whether_a_read_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.create("file", b"content")
    assert not store.waits("file", 3)  # just written, so in the system's cache
    assert not store.waits("nowhere", 0)
    assert not waits_for_disk(MemoryStore(), "file", 0)

    def would_block(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", would_block)
    assert waits_for_disk(store, "file", 3)
    monkeypatch.setattr("safepoint.store.local._NO_WAIT", 0)
    assert not store.waits("file", 3)
