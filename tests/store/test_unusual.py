"""File systems that are not quite local disks: no links, locks or direct I/O; stale handles and short reads."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safepoint.errors import CorruptionError, ExistsError, StoreError
from safepoint.store import LocalStore, aligned_buffer, naming


def refusing(number: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def names(place: Path) -> list[str]:
    return [path.name for path in (place / "r" / "packs").iterdir()]


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(request.param))


def test_without_links_files_are_named_by_renames_that_never_replace(
    without_links: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"first")
    with pytest.raises(ExistsError):
        store.create("packs/a", b"second")
    assert store.read("packs/a") == b"first"
    assert names(tmp_path) == ["a"]
    assert "no hard links" in caplog.text


def test_where_neither_is_possible_nothing_is_written(
    without_links: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "_renameat2", None)
    with pytest.raises(StoreError, match="cannot name") as caught:
        LocalStore(tmp_path / "r").create("packs/a", b"x")
    assert "use a local disk" in str(caught.value)
    assert names(tmp_path) == []


def test_a_lost_reply_to_a_link_is_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lost(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)  # the client asks again, and is told that the name is taken

    monkeypatch.setattr(os, "link", lost)
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"ours")
    assert store.read("packs/a") == b"ours"
    assert names(tmp_path) == ["a"]
    monkeypatch.undo()
    with pytest.raises(ExistsError):
        store.create("packs/a", b"ours")  # the same bytes, but not this file


@pytest.mark.parametrize("function", ["open", "preadv"])
def test_a_stale_handle_is_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"0123456789")
    original, left = getattr(os, function), [2]

    def stale(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(*arguments, **options)

    monkeypatch.setattr(os, function, stale)
    data = np.zeros(4, np.uint8)
    store.read_into("packs/a", 3, data)
    assert data.tobytes() == b"3456"
    left[0] = 2 if function == "open" else 0
    assert store.read("packs/a") == b"0123456789"
    left[0] = 2 if function == "open" else 0
    assert store.size("packs/a") == 10
    left[0] = 1000
    with pytest.raises(StoreError):
        store.read_into("packs/a", 0, data)


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [memoryview(buffers[0])[:7]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: pwritev(fd, [memoryview(buffers[0])[:5]], at))
    store = LocalStore(tmp_path / "r")
    content = bytes(range(100))
    store.create("packs/a", content)
    data = np.zeros(90, np.uint8)
    store.read_into("packs/a", 10, data)
    assert data.tobytes() == content[10:]
    with pytest.raises(CorruptionError, match="ends early"):
        store.read_into("packs/a", 11, data)


@pytest.mark.parametrize("at", ["the flag", "the write"])
def test_without_direct_io_writes_go_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    direct = [False]
    original, pwritev = fcntl.fcntl, os.pwritev

    def control(descriptor: int, what: int, value: int = 0) -> int:
        if what == fcntl.F_SETFL:
            if value & os.O_DIRECT and at == "the flag":
                raise OSError(errno.EINVAL, "Invalid argument")
            direct[0] = bool(value & os.O_DIRECT)
            return 0
        return original(descriptor, what, value)

    def write(descriptor: int, buffers: Any, offset: int) -> int:
        if direct[0]:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwritev(descriptor, buffers, offset)

    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "pwritev", write)
    store = LocalStore(tmp_path / "r")
    sink = store.sink("packs/a")
    data = aligned_buffer(8192)
    data[:] = 7
    sink.write(0, data)
    sink.commit(8192)
    assert store.read("packs/a") == b"\7" * 8192


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_saves_go_on_and_nothing_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    store = LocalStore(tmp_path / "r")
    store.create("packs/a", b"x")
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with store.lock(exclusive=False):
        store.create("packs/b", b"y")
    assert "nothing is ever collected here" in caplog.text
    with pytest.raises(StoreError, match="cannot lock") as caught, store.lock(exclusive=True, wait=False):
        pass
    assert "nothing can be collected" in str(caught.value)


def test_names_that_cannot_be_made_durable_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    LocalStore(tmp_path / "r").create("packs/a", b"x")
    assert "a power cut may lose the last saves" in caplog.text
