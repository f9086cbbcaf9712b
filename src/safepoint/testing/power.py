"""Power cuts without a machine to cut: what a program did to a folder, and every state a cut could leave of it.

For authors of stores that keep files: run the store inside `recorded(folder)`, note at which operation each save was
acknowledged, and open your store on the `states` of every cut.

    with recorded(folder) as disk:
        store.create("a", b"1")
        acknowledged = len(disk.operations)
    for state in disk.states(acknowledged, at_most=100, rng=Random(0)):
        assert state["a"] == b"1"

Invariant: a state holds what was fsynced before the cut, and any part of what was not: writes are lost, torn between
sectors or done out of order, lengths come before data, names appear and vanish in any order. That is less than any file
system in use keeps, so what survives here survives there.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias, final

SECTOR = 512
"""What a disk writes whole, or not at all."""

State: TypeAlias = dict[str, bytes]
"""What is in the folder: path below it → content."""

_EXHAUSTIVE = 8  # up to so many things that may or may not have reached the disk, all combinations are made


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """One thing done to a file or a name; `at` counts them."""

    at: int
    kind: Literal["create", "write", "size", "sync", "name", "unname", "sync folder"]
    file: int = -1
    path: str = ""
    offset: int = 0
    data: bytes = b""
    length: int = 0
    instead: str = ""  # a rename also takes this name away, in the same instant
    covers: int = 0  # a sync: only what was done before this many operations

    def __str__(self) -> str:
        return (
            f"{self.at}: {self.kind} {self.path or f'file {self.file}'} {len(self.data) or self.length or ''}".rstrip()
        )


@final
@dataclass
class RecordedDisk:
    """What was done to a folder, in order.

    Attributes:
        root: the folder.
        operations: what was done so far.
        files: device and inode → number of each file that was made.
        mutex: held while something is done and noted, so that the order is the real one.
    """

    root: Path
    operations: list[Operation] = field(default_factory=list)
    files: dict[tuple[int, int], int] = field(default_factory=dict)
    _num_files: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def states(self, cut: int, *, at_most: int, rng: Random) -> Iterator[State]:
        """States that a power cut after `cut` operations could leave: all of them, or a random `at_most`.

        The first is what was durable, the second what a cut leaves if everything reached the disk in time.
        """
        done = self.operations[:cut]
        doubtful = self._doubtful(done)
        if len(doubtful) <= _EXHAUSTIVE and 2 ** len(doubtful) <= at_most:
            choices: Iterator[tuple[bool, ...]] = itertools.product((False, True), repeat=len(doubtful))
        else:
            some = (tuple(rng.random() < 0.5 for _ in doubtful) for _ in range(at_most - 2))
            ends = [(False,) * len(doubtful), (True,) * len(doubtful)]
            choices = itertools.chain(ends, some)
        num = 0
        for choice in choices:
            lost = {operation.at for operation, kept in zip(doubtful, choice, strict=True) if not kept}
            yield self._state(done, lost, None)
            num += 1
        torn = [operation for operation in doubtful if operation.kind == "write" and len(operation.data) > SECTOR]
        for _ in range(min(at_most - num, 4 * len(torn))):  # the rest: writes that arrived in part
            lost = {operation.at for operation in doubtful if rng.random() < 0.5}
            yield self._state(done, lost, rng)

    def _doubtful(self, done: list[Operation]) -> list[Operation]:
        """What need not have reached the disk: not followed by a sync of its file or folder."""
        synced: dict[int | str, int] = {}
        for operation in done:
            if operation.kind in {"sync", "sync folder"}:
                synced[operation.path or operation.file] = operation.covers
        return [
            operation
            for operation in done
            if operation.kind in {"write", "size", "name", "unname"}
            and operation.at >= synced.get(_folder(operation.path) if operation.path else operation.file, 0)
        ]

    def _state(self, done: list[Operation], lost: set[int], tear: Random | None) -> State:
        names: dict[str, int] = {}
        contents: dict[int, bytearray] = {}
        for operation in done:
            content = contents.setdefault(operation.file, bytearray())
            if operation.kind == "name":
                # A name that is lost leaves the old one, if it was a rename: both are one change of the folder.
                if operation.at not in lost:
                    names[operation.path] = operation.file
                    names.pop(operation.instead, None)
            elif operation.at in lost:
                if operation.kind == "write" and tear is not None:
                    _write_sectors(content, operation, tear)
            elif operation.kind == "unname":
                names.pop(operation.path, None)
            elif operation.kind == "size":
                del content[operation.length :]
                content.extend(bytes(operation.length - len(content)))
            elif operation.kind == "write":
                content.extend(bytes(max(0, operation.offset - len(content))))
                content[operation.offset : operation.offset + len(operation.data)] = operation.data
        folders = {name for name, file in names.items() if file < 0}
        return {
            name: bytes(contents[file])
            for name, file in names.items()
            if file >= 0 and all(parent in folders for parent in _parents(name))
        }

    # -- recording -------------------------------------------------------------------------------------------------

    def note(self, kind: Any, **what: Any) -> None:
        """Add an operation; in the order in which they were done."""
        self.operations.append(Operation(len(self.operations), kind, **what))

    def inside(self, path: Any) -> str | None:
        """The path below the folder, or None for what is elsewhere."""
        try:
            relative = os.path.relpath(os.fspath(path), self.root)
        except (TypeError, ValueError):
            return None
        return None if relative.startswith("..") else relative

    def file_of(self, descriptor: int) -> int | None:
        """The recorded file behind a descriptor."""
        status = os.fstat(descriptor)
        return self.files.get((status.st_dev, status.st_ino))

    def add_file(self, descriptor: int) -> int:
        """A file that is new."""
        status = os.fstat(descriptor)
        number = self.files[status.st_dev, status.st_ino] = self._num_files
        self._num_files += 1
        return number


@contextmanager
def recorded(root: str | os.PathLike[str]) -> Iterator[RecordedDisk]:
    """Records what this process does, through `os`, to a folder on a local file system."""
    disk = RecordedDisk(Path(root).absolute())
    replaced = {name: getattr(os, name) for name in _WRAPPERS}
    try:
        for name, wrap in _WRAPPERS.items():
            setattr(os, name, wrap(disk, replaced[name]))
        yield disk
    finally:
        for name, real in replaced.items():
            setattr(os, name, real)


Call: TypeAlias = Callable[..., Any]


def _open(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        inside = disk.inside(path)
        if inside is None or not flags & os.O_CREAT:
            return int(real(path, flags, mode, **options))
        with disk.mutex:
            there = os.path.lexists(path)
            descriptor = int(real(path, flags, mode, **options))
            if not there:
                number = disk.add_file(descriptor)
                disk.note("create", file=number)
                disk.note("name", file=number, path=inside)
        return descriptor

    return wrapped


def _pwritev(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(descriptor: int, buffers: Any, offset: int, *flags: Any) -> int:
        file = disk.file_of(descriptor)
        with disk.mutex:
            count = int(real(descriptor, buffers, offset, *flags))
            if file is not None:
                data = b"".join(bytes(buffer) for buffer in buffers)[:count]
                disk.note("write", file=file, offset=offset, data=data)
        return count

    return wrapped


def _posix_fallocate(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(descriptor: int, offset: int, length: int) -> None:
        file = disk.file_of(descriptor)
        with disk.mutex:
            before = os.fstat(descriptor).st_size
            real(descriptor, offset, length)
            if file is not None and offset + length > before:
                disk.note("size", file=file, length=offset + length)

    return wrapped


def _ftruncate(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(descriptor: int, length: int) -> None:
        file = disk.file_of(descriptor)
        with disk.mutex:
            real(descriptor, length)
            if file is not None:
                disk.note("size", file=file, length=length)

    return wrapped


def _fsync(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(descriptor: int) -> None:
        before = len(disk.operations)  # what another thread does meanwhile need not be covered
        real(descriptor)
        with disk.mutex:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                if (file := disk.file_of(descriptor)) is not None:
                    disk.note("sync", file=file, covers=before)
            elif (inside := disk.inside(Path(f"/proc/self/fd/{descriptor}").readlink())) is not None:
                disk.note("sync folder", path=inside, covers=before)

    return wrapped


def _link(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(old: Any, new: Any, **options: Any) -> None:
        with disk.mutex:
            real(old, new, **options)
            file, name = disk.files.get(_identity(new)), disk.inside(new)
            if file is not None and name is not None:
                disk.note("name", file=file, path=name)

    return wrapped


def _replace(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(old: Any, new: Any, **options: Any) -> None:
        with disk.mutex:
            real(old, new, **options)
            file, name = disk.files.get(_identity(new)), disk.inside(new)
            if file is not None and name is not None:
                disk.note("name", file=file, path=name, instead=disk.inside(old) or "")

    return wrapped


def _unlink(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(path: Any, **options: Any) -> None:
        with disk.mutex:
            real(path, **options)
            if (inside := disk.inside(path)) is not None:
                disk.note("unname", path=inside)

    return wrapped


def _mkdir(disk: RecordedDisk, real: Call) -> Call:
    def wrapped(path: Any, *mode: Any, **options: Any) -> None:
        with disk.mutex:
            real(path, *mode, **options)
            inside = disk.inside(path)
            if inside is not None and inside != ".":
                disk.note("name", path=inside)

    return wrapped


_WRAPPERS: dict[str, Callable[[RecordedDisk, Call], Call]] = {
    "open": _open, "pwritev": _pwritev, "posix_fallocate": _posix_fallocate, "ftruncate": _ftruncate, "fsync": _fsync,
    "link": _link, "replace": _replace, "unlink": _unlink, "mkdir": _mkdir,
}  # fmt: skip


def _identity(path: Any) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _folder(path: str) -> str:
    return Path(path).parent.as_posix()


def _parents(path: str) -> list[str]:
    return [parent.as_posix() for parent in Path(path).parents if parent.as_posix() != "."]


def _write_sectors(content: bytearray, operation: Operation, rng: Random) -> None:
    """Some sectors of a write: those before one, those behind it, or any."""
    num = -(-len(operation.data) // SECTOR)
    shape, split = rng.randrange(3), rng.randrange(num + 1)
    content.extend(bytes(max(0, operation.offset + len(operation.data) - len(content))))
    for index in range(num):
        if (index < split, index >= split, rng.random() < 0.5)[shape]:
            part = operation.data[index * SECTOR : (index + 1) * SECTOR]
            start = operation.offset + index * SECTOR
            content[start : start + len(part)] = part
