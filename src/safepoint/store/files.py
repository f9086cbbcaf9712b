"""Writing files that are whole and durable or not there: what a local store and whole-model files are made with.

Order of every creation: write a temporary file in the same folder → fsync it → link it to its name → remove the
temporary name → fsync the folder. A crash leaves either nothing visible, or the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError, ExistsError, NotFoundError, SafepointError, StoreError
from safepoint.store.naming import name_file
from safepoint.store.protocol import ALIGNMENT
from safepoint.tree import nearest

TEMPORARY = ".tmp-"
"""How names of files begin that are not committed yet."""

_log = logging.getLogger("safepoint")
_DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where there is none, and in tests that do without
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each durable in the one above.

    Raises:
        StoreError: it cannot be created.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        raise store_error("cannot create", folder, error) from error


def sync_parents(root: Path, folder: Path) -> None:
    """Make the names of folders durable that another process made, and may not have lived to do so."""
    for path in {folder, root}:
        with contextlib.suppress(OSError):  # a parent that may not be listed: whoever made the folder could
            sync_folder(path.parent)


def replace_file(path: Path, *, replace: bool = True, direct: bool = True) -> LocalSink:
    """A sink that takes the place of `path` when committed; the old file stays whole until the new one is durable.

    What writers of the same file left that were killed is removed; who lives holds a lock on its own.

    Args:
        path: of the file.
        replace: False: `commit` raises where the name is taken by then.
        direct: False: write through the page cache, where it is read again soon.
    """
    prefix = f"{TEMPORARY}{path.name[:100]}-"
    leftovers: list[Path] = []
    with contextlib.suppress(OSError):  # whoever writes next removes them
        leftovers = list(path.parent.glob(f"{glob.escape(prefix)}*"))
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                close(descriptor)
    return LocalSink(path, replace=replace, prefix=prefix, direct=direct)


def nearest_path(path: Path) -> Path | None:
    """What is there under a name that is much like the last part of `path`, or None."""
    try:
        close_name = nearest(path.name, [entry.name for entry in path.parent.iterdir() if entry.name != path.name])
    except OSError:  # no such folder, or one that may not be listed
        return None
    return path.with_name(close_name) if close_name else None


def close(descriptor: int) -> None:
    """Close a file of which everything that matters is known: what was written is durable by now, or given up."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def open_file(name: str, *, folder: int | None = None) -> int:
    """A descriptor for reading a regular file; links are not followed where it is named from inside a `folder`.

    Raises:
        NotFoundError: there is none.
        StoreError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in place of a file must not hang the reader
    try:
        descriptor = os.open(name, flags if folder is None else flags | os.O_NOFOLLOW, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no {name}", hint="check the path") from None
    except (OSError, ValueError) as error:
        refusal = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
        raise StoreError(f"cannot open {name[:200]}", error=refusal, path=name) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        close(descriptor)
        raise NotFoundError(f"{name} is not a file", expected="a regular file")
    return descriptor


def read_bytes(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """`length` bytes of an open file at `offset`; whoever asks has compared them with its size.

    Raises:
        As `fill_from`.
    """
    data = np.empty(length, np.uint8)
    fill_from(descriptor, offset, data, name)
    return data.tobytes()


def fill_from(descriptor: int, offset: int, data: NDArray[np.uint8], name: str) -> None:
    """Fill `data` from an open file at `offset`, whatever the length of single reads.

    Raises:
        CorruptionError: the file ends before, or the disk has lost it.
        StoreError: it cannot be read.
    """
    view = data.data
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise read_error(name, error) from error
        if count == 0:
            raise CorruptionError(
                f"{name} ends early", file=name, expected=f"{offset + len(view)} bytes", found=f"{offset + done} bytes"
            )
        done += count


def read_error(name: str, error: OSError) -> SafepointError:
    """What a failed read means: bytes that the disk cannot give back are damage, like bytes that came back wrong."""
    if error.errno == errno.EIO:
        return CorruptionError(
            f"{name} cannot be read back from its disk", file=name, expected="its bytes", found=error
        )
    return StoreError(f"cannot read {name}", error=error, path=name)


@final
class LocalSink:
    """A temporary file beside its final name."""

    def __init__(self, path: Path, *, replace: bool, prefix: str = TEMPORARY, direct: bool = True) -> None:
        self._path = path
        self._replace = replace
        self._temporary = path.parent / f"{prefix}{secrets.token_hex(8)}"
        self._reserved = 0
        self._mutex = threading.Lock()
        self._dead = False
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise store_error("cannot write into", path.parent, error) from error
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._direct = False
        self._direct_works = direct and bool(_DIRECT)
        self._starts_early = not direct and hasattr(os, "posix_fadvise")

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        self._check_alive()
        aligned = offset % ALIGNMENT == 0 and len(data) % ALIGNMENT == 0 and data.ctypes.data % ALIGNMENT == 0
        self._go_direct(wanted=aligned)
        view = data.data
        done = 0
        while done < len(view):
            try:
                done += os.pwritev(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and aligned:
                    aligned = False  # the file system took the flag but not the write, or not the rest of a short one
                    self._go_direct(wanted=False)
                    continue
                self._dead = True
                raise store_error("cannot write", self._path, error) from error
        if self._starts_early:
            # Pages that are not written yet cannot be dropped, and Linux begins to write them: fsync finds little to do
            # (1 GB beside other jobs: 5.4 instead of 6.8 s).
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)

    def write_small(self, data: bytes) -> None:
        self.write(0, np.frombuffer(data, np.uint8))

    def reserve(self, num_bytes: int) -> None:
        with self._mutex:
            if num_bytes <= self._reserved or not hasattr(os, "posix_fallocate"):
                return
            step = max(num_bytes - self._reserved, 0)
            try:
                os.posix_fallocate(self._descriptor, self._reserved, step)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                    self._dead = True
                    raise store_error("cannot write", self._path, error, needed=num_bytes) from error
            self._reserved = num_bytes

    def commit(self, num_bytes: int, check: Callable[[str], None] | None = None) -> None:
        """See `Sink.commit`; `check` looks at the durable file before it gets its name, and raises if it may not."""
        self._check_alive()
        try:
            os.ftruncate(self._descriptor, num_bytes)
            os.fsync(self._descriptor)  # once: after a failure the kernel may call lost pages clean
        except OSError as error:
            self._dead = True
            raise store_error("cannot make durable", self._path, error) from error
        if check is not None:
            check(str(self._temporary))
        try:
            if self._replace:
                os.replace(self._temporary, self._path)
            else:
                name_file(self._temporary, self._path)
            sync_folder(self._path.parent)
        except FileExistsError:
            raise ExistsError(f"{self._path.name} exists already in {self._path.parent}") from None
        except OSError as error:
            hint = None
            if error.errno in _NO_LINKS and not self._replace:
                hint = "this file system can name no file without overwriting another: use a local disk"
            raise store_error("cannot name", self._path, error, hint=hint) from error
        self.abort()

    def abort(self) -> None:
        if self._descriptor < 0:
            return
        close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _check_alive(self) -> None:
        if self._dead or self._descriptor < 0:
            why = "an earlier write failed" if self._dead else "it was committed or given up"
            raise StoreError(f"cannot write {self._path}: {why}", path=str(self._path))

    def _go_direct(self, *, wanted: bool) -> None:
        """Switch direct I/O for this file; once it was not possible, it stays off: other threads write meanwhile."""
        if wanted and (self._direct or not self._direct_works):
            return
        with self._mutex:
            self._direct_works = self._direct_works and wanted
            if self._direct == self._direct_works:
                return
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
                self._direct = wanted
            except OSError:
                self._direct_works = False
                _log.debug("%s: no direct I/O here, writing through the page cache", self._path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Source: fsync(2), "an explicit fsync() on a file descriptor for the directory is also needed".
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
        _log.warning("%s: this file system cannot make names durable; a power cut may lose the last saves", folder)
    finally:
        close(descriptor)


def store_error(
    what: str, path: Path, error: OSError, *, needed: int | None = None, hint: str | None = None
) -> StoreError:
    """What the operating system refused, with what to do about it."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = hint or f"{_free_bytes(path)} bytes are free; make room, prune snapshots or choose another place"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        hint = hint or "choose a folder you may write to, or change its permissions"
    expected = None if needed is None else f"room for {needed:,} bytes"
    return StoreError(f"{what} {path}", error=error, path=str(path), expected=expected, hint=hint)


def _free_bytes(path: Path) -> str:
    try:
        existing = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        status = os.statvfs(existing)
    except OSError:  # a disk that says nothing any more
        return "too few"
    return f"{status.f_bavail * status.f_frsize:,}"
