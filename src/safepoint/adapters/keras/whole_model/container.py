"""The zip file around a native `.keras` model: every member checked before any is read, none extracted by name.

Invariant: what is read has the size that was checked and the checksum that was written (`codec.archive`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, final

from safepoint.codec import Member, check_member, read_member, read_members
from safepoint.errors import CorruptionError, StoreError, UnsupportedError
from safepoint.store.files import read_bytes

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
ASSETS = "assets/"

_MAX_MEMBERS = 10_000
_MAX_TEXT_BYTES = 256 << 20
_MAX_EXPANSION = 100  # of weights, which hardly compress; text is bounded by its size alone


@final
@dataclass(frozen=True, slots=True)
class Container:
    """A checked `.keras` file.

    Attributes:
        path: where it is.
        members: name → member, each checked.
    """

    path: str
    members: Mapping[str, Member]

    def text(self, name: str) -> bytes:
        """The content of a small member.

        Raises:
            CorruptionError: it is not there, too large, or not what was written.
        """
        member = self.members.get(name)
        if member is None:
            raise CorruptionError(
                f"{self.path} has no {name}", file=self.path, expected=name, found=_some(self.members)
            )
        if member.num_bytes > _MAX_TEXT_BYTES:
            raise self._wrong(name, f"it would be {member.num_bytes:,} bytes", f"at most {_MAX_TEXT_BYTES:,} bytes")
        with _open(self.path) as file:
            return read_member(_reading(file, self.path), member, file=self.path)

    def weights(self) -> IO[bytes]:
        """The weights' HDF5 file, its checksum verified: a window into the archive, or memory where it is compressed.

        Raises:
            CorruptionError: not what was written, or it would expand beyond measure.
        """
        member = self.members[WEIGHTS]
        if member.num_bytes > _MAX_EXPANSION * max(member.packed, 1):
            raise self._wrong(WEIGHTS, "it expands beyond measure", f"at most {_MAX_EXPANSION} times its size")
        if member.deflated:
            with _open(self.path) as file:
                return io.BytesIO(read_member(_reading(file, self.path), member, file=self.path))
        file = _open(self.path)
        try:
            check_member(_reading(file, self.path), member, file=self.path)
            return io.BufferedReader(Window(file, member.start, member.num_bytes))
        except BaseException:
            file.close()
            raise

    def _wrong(self, name: str, what: str, expected: str) -> CorruptionError:
        return CorruptionError(f"{name} in {self.path} is damaged: {what}", file=self.path, expected=expected)


@final
class Window(io.RawIOBase):
    """The bytes of a file from `start` on, as a file of their own; closes the file with it."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        count = os.preadv(self._file.fileno(), [view], self._start + self._position) if len(view) else 0
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_container(path: str) -> Container:
    """Check a `.keras` file as a whole; reads its directory, no member.

    Raises:
        CorruptionError: not a zip file, one made to be read in two ways, or with members that no `.keras` file has.
        StoreError: it cannot be opened.
    """
    with _open(path) as file:
        try:
            members = read_members(_reading(file, path), os.fstat(file.fileno()).st_size, file=path)
        except UnsupportedError as error:
            raise CorruptionError(
                f"{path} has a member as Keras never writes one", file=path, expected=error.expected, found=error.found
            ) from error
    known = {CONFIG, METADATA, WEIGHTS}
    stranger = next((name for name in members if name not in known and not name.startswith(ASSETS)), None)
    if stranger is not None or len(members) > _MAX_MEMBERS:
        raise CorruptionError(
            f"{path} has a member that no .keras file has",
            file=path,
            expected=f"{METADATA}, {CONFIG}, {WEIGHTS}, {ASSETS}...",
            found=f"{len(members)} members" if stranger is None else repr(stranger[:80]),
        )
    return Container(path, members)


def _reading(file: IO[bytes], path: str) -> Callable[[int, int], bytes]:
    return lambda start, length: read_bytes(file.fileno(), start, length, path)


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")  # noqa: PTH123  # closed by whoever asked
    except OSError as error:
        raise StoreError(f"cannot open {path}", error=error, path=path) from error


def _some(members: Mapping[str, Any]) -> str:
    return ", ".join(sorted(members)[:5]) or "nothing"
