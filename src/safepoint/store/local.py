"""A store in a local folder: create-only, durable, with a lock that dies with its process. See `files` for how."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import ConflictError, CorruptionError, NotFoundError, SafepointError, StoreError, UnsupportedError
from safepoint.store.direct import fill_past_cache
from safepoint.store.files import (
    TEMPORARY,
    LocalSink,
    close,
    fill_from,
    make_folder,
    read_error,
    store_error,
    sync_folder,
    sync_parents,
)
from safepoint.store.protocol import Store, check_file_name, check_length

T = TypeVar("T")
_log = logging.getLogger("safepoint")
_TRY_SECONDS = 0.02
_PATIENT_TRIES = 100  # a collection takes less than two seconds; whoever waits longer is told why
_STALE_TRIES = 3
_READ_BYTES = 1 << 20
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_NOT_REGULAR = {errno.ELOOP, errno.ENXIO, errno.EISDIR}  # a symbolic link, a socket, a folder


def _steadily(read: Callable[[], T]) -> T:
    """Read, and look the name up again where the server has forgotten it: files never change, so that is harmless.

    Source: NFS, RFC 1813: NFS3ERR_STALE.
    """
    for _ in range(_STALE_TRIES - 1):
        try:
            return read()
        except StoreError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


class _Locks:
    """Descriptors of the locks that this process holds.

    A forked child would hold them too, and for as long as it lives: a data-loading worker that outlives its killed
    parent would keep everybody out. So a child closes them at once; `opening` keeps a fork from falling between.
    """

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.opening = threading.Lock()
        os.register_at_fork(
            before=self.opening.acquire, after_in_parent=self.opening.release, after_in_child=self._drop
        )

    def _drop(self) -> None:
        for descriptor in self.held:
            close(descriptor)
        self.held.clear()
        self.opening.release()


_locks = _Locks()


@final
class LocalStore:
    """A folder on a local file system. Nothing is created before the first write.

    Args:
        path: of the folder; its parents are created with it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if "\0" in str(path):
            raise UnsupportedError(f"{str(path)!r} is not a path")
        self.path = Path(path)
        self.location = str(self.path)
        self._made: set[Path] = set()

    def exists(self) -> bool:
        try:
            # A first save that was killed leaves these: still an empty place.
            return any(e.name != "lock" and not e.name.startswith(".") for e in self.path.iterdir())
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise NotFoundError(
                f"{self.location} is a file, not a folder", expected="a folder", hint="choose another path"
            ) from error
        except OSError as error:
            raise store_error("cannot look into", self.path, error) from error

    def create(self, name: str, data: bytes) -> None:
        sink = self.sink(name)
        try:
            sink.write_small(data)
            sink.commit(len(data))
        finally:
            sink.abort()

    def sink(self, name: str) -> LocalSink:
        final_path = self._file(name)
        if final_path.parent not in self._made:
            make_folder(final_path.parent)
            sync_parents(self.path, final_path.parent)
            self._made.add(final_path.parent)
        return LocalSink(final_path, replace=False)

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        return _steadily(lambda: self._read(name, at_most))

    def _read(self, name: str, at_most: int | None) -> bytes:
        with self._open(name) as descriptor:
            length = os.fstat(descriptor).st_size
            if at_most is not None:
                check_length(name, length, at_most)
            try:
                pieces = [os.read(descriptor, length)]
                while pieces[-1]:  # a signal may cut a read short
                    pieces.append(os.read(descriptor, _READ_BYTES))
            except OSError as error:
                raise read_error(name, error) from error
            return b"".join(pieces)

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        _steadily(lambda: self._read_into(name, offset, data))

    def _read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        with self._open(name) as descriptor:
            fill_from(descriptor, offset, data, name)

    def read_past_cache(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        """As `read_into`, for what is large and read once: the page cache stays as it is, where the system can that."""

        def read() -> None:
            with self._open(name) as descriptor:
                fill_past_cache(descriptor, offset, data, name)

        _steadily(read)

    def waits(self, name: str, offset: int) -> bool:
        """Whether a read at an offset would wait for the disk; False where the system does not tell."""
        if not _NO_WAIT:
            return False
        try:
            with self._open(name) as descriptor:
                os.preadv(descriptor, [bytearray(1)], offset, _NO_WAIT)
        except BlockingIOError:
            return True
        except (OSError, SafepointError):  # that it cannot be read is for the read to tell
            return False
        return False

    def size(self, name: str) -> int:
        return _steadily(lambda: self._size(name))

    def _size(self, name: str) -> int:
        path = os.path.join(self.location, check_file_name(name))
        try:
            found = os.lstat(path)  # a thousand packs are looked at without opening them
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"no {name} in {self.location}") from None
        except OSError as error:
            raise store_error("cannot look at", self._file(name), error) from error
        if not stat.S_ISREG(found.st_mode):
            raise CorruptionError(f"{name} is not a regular file", file=name)
        return found.st_size

    def list(self, folder: str) -> list[str]:
        try:
            return sorted([entry for entry in os.listdir(self._file(folder)) if entry[0] != "."])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error("cannot list", self._file(folder), error) from error

    def delete(self, name: str) -> None:
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise store_error("cannot delete", self._file(name), error) from error

    def clean(self) -> int:
        freed = 0
        folder = self.path
        try:
            folders = [entry for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            for folder in (self.path, *folders):
                sync_folder(folder)  # a name of a writer that died before it could do so
                for leftover in os.listdir(folder):
                    if leftover.startswith(TEMPORARY):
                        with contextlib.suppress(OSError):
                            freed += (folder / leftover).stat().st_size
                            (folder / leftover).unlink()
        except OSError as error:
            raise store_error("cannot make durable", folder, error) from error
        return freed

    @contextmanager
    def lock(self, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
        with _locks.opening:
            descriptor = self._open_lock(exclusive=exclusive)
            if descriptor is not None:
                _locks.held.add(descriptor)
        if descriptor is None:
            yield
            return
        try:
            self._take_lock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait=wait)
            yield
        finally:
            if descriptor in _locks.held:  # not in a child: there it is closed, and the number may be another file's
                _locks.held.discard(descriptor)
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                close(descriptor)

    def _take_lock(self, descriptor: int, operation: int, *, wait: bool) -> None:
        try:
            for _ in range(_PATIENT_TRIES if wait else 1):
                try:
                    fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(_TRY_SECONDS if wait else 0)
                else:
                    return
            if not wait:
                hint = "try again when its saves and restores are done"
                raise ConflictError(f"{self.location} is in use", hint=hint)
            _log.warning("%s is being collected by another process: waiting for it", self.location)
            fcntl.flock(descriptor, operation)
        except OSError as error:
            if error.errno in _NO_LOCKS and operation == fcntl.LOCK_SH:  # no collector can have one either
                _log.warning("%s: no locks on this file system, so nothing is ever collected here", self.location)
                return
            advice = "this file system has no locks: nothing can be collected here"
            raise store_error(
                "cannot lock", self.path / "lock", error, hint=advice if error.errno in _NO_LOCKS else None
            ) from error

    def _open_lock(self, *, exclusive: bool) -> int | None:
        """The lock file, or None where a read-only place has no way to be written or collected anyway."""
        path = self.path / "lock"
        try:
            if exclusive or self.path.exists():
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if exclusive or error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
                raise store_error("cannot open", path, error) from error
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    def _file(self, name: str) -> Path:
        return self.path / check_file_name(name)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = os.path.join(self.location, check_file_name(name))
        try:
            # O_NONBLOCK: a FIFO in place of a file must not hang the reader.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"no {name} in {self.location}") from None
        except OSError as error:
            if error.errno in _NOT_REGULAR:
                raise CorruptionError(f"{name} is not a regular file", file=name) from error
            raise store_error("cannot open", self._file(name), error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CorruptionError(f"{name} is not a regular file", file=name)
            yield descriptor
        finally:
            close(descriptor)


def reader_past_cache(store: Store) -> Callable[[str, int, NDArray[np.uint8]], None]:
    """`read_past_cache` of local stores, `read_into` of others."""
    return store.read_past_cache if isinstance(store, LocalStore) else store.read_into


def waits_for_disk(store: Store, name: str, offset: int) -> bool:
    """Whether a read would wait for the disk, where that can be told: of local stores."""
    return isinstance(store, LocalStore) and store.waits(name, offset)
