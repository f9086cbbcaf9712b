"""What a store is. `safepoint.testing.store_suite` tests any of them.

Invariant: a name is created once, whole and durable, or not at all; nothing is ever overwritten.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError, UnsupportedError

ALIGNMENT = 4096
"""What direct I/O asks of memory, offsets and lengths on every disk in use. Source: open(2), O_DIRECT."""

_NAME = re.compile(r"(?:[a-z]+/)?[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


class Sink(Protocol):
    """A file being written, invisible until `commit`; its methods may be called from several threads."""

    def write(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Put bytes at an offset.

        Offset and length are multiples of `ALIGNMENT` and memory is `aligned_buffer`'s, but for the last bytes of the
        file.

        Raises:
            StoreError: disk full or failing; the sink is dead.
        """
        ...

    def reserve(self, num_bytes: int) -> None:
        """Make sure that the file can grow to `num_bytes`.

        Raises:
            StoreError: there is no room; says how much is free.
        """
        ...

    def commit(self, num_bytes: int) -> None:
        """Cut the file to `num_bytes`, make it durable and give it its name.

        Raises:
            ExistsError: the name is taken.
            StoreError: it could not be made durable: `fsync` is not retried, the file is given up.
        """
        ...

    def abort(self) -> None:
        """Give the file up and free its space; harmless after `commit`."""
        ...


class Store(Protocol):
    """Where a repository's files live. Names are `folder/file` or `file`; see `check_file_name`."""

    location: str
    """What people call the place: a path or URL."""

    def exists(self) -> bool:
        """Whether the place itself exists and holds anything."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Create a file whole and durable.

        Raises:
            ExistsError: the name is taken.
            StoreError: the store refused; nothing is visible.
        """
        ...

    def sink(self, name: str) -> Sink:
        """Start a large file that becomes visible, whole and durable, when it is committed."""
        ...

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """A whole small file.

        Raises:
            NotFoundError: there is none.
            CorruptionError: it is longer than `at_most` bytes, or no regular file.
            StoreError: it cannot be read.
        """
        ...

    def read_into(self, name: str, offset: int, data: NDArray[np.uint8]) -> None:
        """Fill `data` from a file's bytes at `offset`; several threads may do so.

        Raises:
            NotFoundError: there is no such file.
            CorruptionError: it ends before.
            StoreError: it cannot be read.
        """
        ...

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            NotFoundError: there is none.
        """
        ...

    def list(self, folder: str) -> list[str]:
        """Names (without the folder) of the files in a folder, sorted; empty if there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file; harmless if there is none."""
        ...

    def clean(self) -> int:
        """Remove what dead writers left and make durable what they named; only under the exclusive lock.

        Returns:
            The bytes freed.
        """
        ...

    def lock(self, *, exclusive: bool, wait: bool = True) -> AbstractContextManager[None]:
        """Shared for writers and restores, exclusive for collection; ends with the context, or the process.

        Raises:
            ConflictError: `wait` is False and others hold it.
        """
        ...


def check_file_name(name: str) -> str:
    """`name`, if a store takes it: at most one folder, letters, digits, dots, dashes; never `..` or a hidden file.

    Raises:
        UnsupportedError: it does not.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UnsupportedError(f"{name!r} is not a name of a file in a repository")
    return name


def check_length(name: str, found: int, at_most: int) -> None:
    """Whether a file is short enough to be read whole.

    Raises:
        CorruptionError: it is not.
    """
    if found > at_most:
        raise CorruptionError(f"{name} is too long", file=name, expected=f"at most {at_most} bytes", found=f"{found}")
