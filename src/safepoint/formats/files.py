"""Strangers' files, opened for reading: regular files only, every read inside the file, no name leads out of a folder.

Invariant: reads are `pread`s, never maps: a file that somebody cuts short is an error, not a signal.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

from safepoint.codec import parse_json
from safepoint.errors import CorruptionError, NotFoundError, StoreError, UnsupportedError
from safepoint.store.files import close, fill_from, open_file
from safepoint.tree.leaves import Bytes

_MAX_TEXT_BYTES = 100_000_000
_STORED_ELSEWHERE = re.compile(r"\.\./\.\./blobs/[0-9a-f]{40,64}")
"""Where a link in a snapshot of the Hugging Face cache leads. Source: huggingface_hub, `docs/guides/manage-cache`."""


class Readable(Protocol):
    """Bytes with a length: a file, or a stretch of one."""

    path: str
    num_bytes: int

    def array(self, offset: int, length: int) -> Bytes:
        """See `File.array`."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """See `File.read`."""
        ...

    def close(self) -> None:
        """See `File.close`."""
        ...


@final
class File:
    """A regular file, opened; closed by `close`, or with its last reference.

    Attributes:
        path: where it is.
        num_bytes: its size when it was opened.
    """

    __slots__ = ("_descriptor", "num_bytes", "path")

    def __init__(self, path: str | os.PathLike[str], *, descriptor: int | None = None) -> None:
        self.path = os.fspath(path)
        self._descriptor = open_file(self.path) if descriptor is None else descriptor
        self.num_bytes = os.fstat(self._descriptor).st_size

    def array(self, offset: int, length: int) -> Bytes:
        """`uint8[length]` from `offset` on, in fresh memory.

        Raises:
            CorruptionError: the file ends before; nothing was allocated.
            StoreError: it cannot be read.
        """
        if self._descriptor < 0:
            raise UnsupportedError(f"{self.path} was closed", hint="read inside the with block")
        if offset < 0 or length < 0 or offset + length > self.num_bytes:
            raise CorruptionError(
                f"{self.path} is damaged, or cut short",
                file=self.path,
                expected=f"bytes {offset} to {offset + length}",
                found=f"a file of {self.num_bytes} bytes",
            )
        data = np.empty(length, np.uint8)
        fill_from(self._descriptor, offset, data, self.path)
        return data

    def read(self, offset: int, length: int) -> bytes:
        """The same as `bytes`."""
        return self.array(offset, length).tobytes()

    def head(self, length: int) -> bytes:
        """The first bytes, as many as there are."""
        return self.read(0, min(length, self.num_bytes))

    def close(self) -> None:
        """Give the descriptor back; harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


@final
class Window:
    """A stretch of a file as a file of its own, for formats that hold one another.

    Attributes:
        path: of the file that it is in.
        num_bytes: of the stretch.
    """

    __slots__ = ("_file", "_start", "num_bytes", "path")

    def __init__(self, file: Readable, start: int, num_bytes: int) -> None:
        self._file = file
        self._start = start
        self.num_bytes = num_bytes
        self.path = file.path

    def array(self, offset: int, length: int) -> Bytes:
        """As `File.array`."""
        if offset < 0 or length < 0 or offset + length > self.num_bytes:
            raise CorruptionError(f"{self.path} is damaged, or cut short", file=self.path)
        return self._file.array(self._start + offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """As `File.read`."""
        return self.array(offset, length).tobytes()

    def close(self) -> None:
        """Close the file that it is in."""
        self._file.close()


@final
class Stream(io.RawIOBase):
    """A readable as Python's kind of file, for a library that wants one."""

    def __init__(self, source: Readable) -> None:
        super().__init__()
        self._source, self._position = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._source.num_bytes - self._position))
        memoryview(buffer)[:count] = self._source.array(self._position, count).data
        self._position += count
        return count


@final
class Folder:
    """A folder whose files are opened by names that another file gave: plain names, beneath it, no links."""

    __slots__ = ("path",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def open(self, name: str) -> File:
        """The file called `name`, a relative path of plain parts.

        Raises:
            CorruptionError: the name leads out of the folder, or through a link.
            NotFoundError: there is no such file.
        """
        parts = name.split("/")
        if not name or len(name) > 1024 or {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
            raise self._leads_out(name)
        full = str(self.path / name)
        descriptors = [self._descriptor(str(self.path), None, name)]
        try:
            for part in parts[:-1]:
                descriptors.append(self._descriptor(part, descriptors[-1], name))
            if self._is_cached(name):
                return File(full)
            descriptor = open_file(parts[-1], folder=descriptors[-1])
        except NotFoundError as error:
            raise NotFoundError(f"{full} is missing", expected=name, found="no such file") from error
        except StoreError as error:
            if Path(full).is_symlink():
                raise self._leads_out(name) from error
            raise
        finally:
            for opened in descriptors:
                close(opened)
        return File(full, descriptor=descriptor)

    def names(self) -> list[str]:
        """Names of what is in it, sorted."""
        try:
            return sorted(os.listdir(self.path))  # noqa: PTH208 — names, not paths
        except OSError as error:
            raise StoreError(f"cannot look into {self.path}", error=error, path=str(self.path)) from error

    def _descriptor(self, part: str, above: int | None, name: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if above is None else os.O_NOFOLLOW)
        try:
            return os.open(part, flags, dir_fd=above)
        except FileNotFoundError:
            raise NotFoundError(f"{self.path / name} is missing", found="no such folder") from None
        except OSError as error:
            raise self._leads_out(name) from error

    def _is_cached(self, name: str) -> bool:
        """Whether it is a link of the Hugging Face cache to its own store."""
        path = self.path / name
        return self.path.parent.name == "snapshots" and path.is_symlink() and self._leads_to_blob(path)

    @staticmethod
    def _leads_to_blob(path: Path) -> bool:
        return _STORED_ELSEWHERE.fullmatch(os.readlink(path)) is not None  # noqa: PTH115 — its text

    def _leads_out(self, name: str) -> CorruptionError:
        return CorruptionError(
            f"{self.path} names a file outside itself, or a link",
            file=str(self.path),
            expected="names of files beneath the folder",
            found=repr(name[:80]),
        )


def read_json(file: File) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CorruptionError: it holds something else, or more than 100 MB.
    """
    if file.num_bytes > _MAX_TEXT_BYTES:
        raise CorruptionError(f"{file.path} is too long for JSON", file=file.path, found=f"{file.num_bytes} bytes")
    try:
        document = parse_json(file.read(0, file.num_bytes))
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{file.path} is not JSON", file=file.path, found=error) from error
    if not isinstance(document, dict):
        raise CorruptionError(f"{file.path} holds no JSON object", file=file.path, found=type(document).__name__)
    return document
