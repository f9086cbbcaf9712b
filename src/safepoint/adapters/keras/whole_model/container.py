"""The zip file around a native `.keras` model: every member checked before any is read, none extracted by name.

Invariant: central directory and local headers agree, members lie one after another without gap or overlap, and what is
read has the size that was checked and the checksum that was written.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, final

from safepoint.errors import CorruptionError, StoreError

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
ASSETS = "assets/"

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_END_BYTES = 22
_FLAGS = 0x0008 | 0x0800  # sizes behind the data, names in UTF-8; not encrypted, not patched
_DESCRIPTOR_BYTES = 24
_MAX_MEMBERS = 10_000
_MAX_TEXT_BYTES = 256 << 20
_MAX_EXPANSION = 100  # of weights, which hardly compress; text is bounded by its size alone
_CHUNK_BYTES = 4 << 20


@final
@dataclass(frozen=True, slots=True)
class Container:
    """A checked `.keras` file.

    Attributes:
        path: where it is.
        members: name → entry, each checked.
    """

    path: str
    members: Mapping[str, zipfile.ZipInfo]

    def text(self, name: str) -> bytes:
        """The content of a small member.

        Raises:
            CorruptionError: it is not there, too large, or not what was written.
        """
        info = self.members.get(name)
        if info is None:
            raise CorruptionError(
                f"{self.path} has no {name}", file=self.path, expected=name, found=_some(self.members)
            )
        if info.file_size > _MAX_TEXT_BYTES:
            raise self._wrong(
                name, f"it would be {info.file_size:,} bytes", expected=f"at most {_MAX_TEXT_BYTES:,} bytes"
            )
        with self._open() as file, zipfile.ZipFile(file) as archive:
            return self._read(archive, info)

    def weights(self) -> IO[bytes]:
        """The weights' HDF5 file, its checksum verified: a window into the archive, or memory where it is compressed.

        Raises:
            CorruptionError: not what was written, or it would expand beyond measure.
        """
        info = self.members[WEIGHTS]
        if info.file_size > _MAX_EXPANSION * max(info.compress_size, 1):
            raise self._wrong(WEIGHTS, "it expands beyond measure", expected=f"at most {_MAX_EXPANSION} times its size")
        if info.compress_type != zipfile.ZIP_STORED:
            with self._open() as file, zipfile.ZipFile(file) as archive:
                return io.BytesIO(self._read(archive, info))
        file = self._open()
        try:
            start = _data_start(file, info)
            window = Window(file, start, info.file_size)
            self._verify(window, info)
            return io.BufferedReader(window)
        except BaseException:
            file.close()
            raise

    def _verify(self, window: Window, info: zipfile.ZipInfo) -> None:
        crc = 0
        while data := window.read(_CHUNK_BYTES):
            crc = zlib.crc32(data, crc)
        if crc != info.CRC:
            raise self._wrong(info.filename, "its checksum differs", expected=f"{info.CRC:08x}", found=f"{crc:08x}")
        window.seek(0)

    def _read(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(info) as member:
                data = member.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise self._wrong(info.filename, str(error)) from error
        if len(data) != info.file_size:
            raise self._wrong(info.filename, "its size differs", expected=info.file_size, found=len(data))
        return data

    def _open(self) -> IO[bytes]:
        return _open(self.path)

    def _wrong(self, name: str, what: str, **detail: Any) -> CorruptionError:
        return CorruptionError(f"{name} in {self.path} is damaged: {what}", file=self.path, **detail)


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
        CorruptionError: not a zip file, or one made to be read in two ways.
        StoreError: it cannot be opened.
    """
    with _open(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error) as error:
            raise CorruptionError(f"{path} is not a whole .keras file", file=path, found=error) from error
        with archive:
            members = _members(path, archive)
            _check_layout(path, file, archive, members)
            return Container(path, members)


def _members(path: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    members = {info.filename: info for info in entries}
    folded = {info.filename.casefold() for info in entries}
    if len(entries) > _MAX_MEMBERS or len(folded) != len(entries):
        raise CorruptionError(f"{path} has a member twice, or too many", file=path, found=f"{len(entries)} members")
    for name, info in members.items():
        known = name in {CONFIG, METADATA, WEIGHTS} or name.startswith(ASSETS)
        parts = name.rstrip("/").split("/")
        clean = (
            name == info.orig_filename and not {"", ".", ".."} & set(parts) and "\\" not in name and name.isprintable()
        )
        if not known or not clean:
            raise CorruptionError(
                f"{path} has a member that no .keras file has",
                file=path,
                expected=f"{METADATA}, {CONFIG}, {WEIGHTS}, {ASSETS}...",
                found=repr(name[:80]),
            )
        if info.flag_bits & ~_FLAGS or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise CorruptionError(f"{name} in {path} is encrypted, or compressed in a way Keras never does", file=path)
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise CorruptionError(f"{name} in {path} has two sizes", file=path)
    return members


def _check_layout(path: str, file: IO[bytes], archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Two readers must see the same archive: one directory, at the end, of members that fill the file before it."""
    position = 0
    for info in sorted(members.values(), key=lambda info: info.header_offset):
        slack = _DESCRIPTOR_BYTES if info.flag_bits & 0x0008 and position else 0
        if not 0 <= info.header_offset - position <= max(slack, _DESCRIPTOR_BYTES if position else 0):
            raise CorruptionError(
                f"members of {path} overlap, or something lies between them", file=path, name=info.filename
            )
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        name = file.read(len(info.orig_filename.encode()))
        if len(header) < _LOCAL.size or not _same(header, name, info):
            raise CorruptionError(f"{path} describes {info.filename} in two different ways", file=path)
        position = _data_start(file, info) + info.compress_size
    size = os.fstat(file.fileno()).st_size
    file.seek(size - _END_BYTES)
    at_end = file.read(4) == b"PK\x05\x06" and not archive.comment
    if not at_end or not 0 <= archive.start_dir - position <= _DESCRIPTOR_BYTES:
        raise CorruptionError(f"{path} has bytes that belong to no member", file=path)


def _same(header: bytes, name: bytes, info: zipfile.ZipInfo) -> bool:
    signature, _, flags, method, _, _, crc, packed, size, name_length, _ = _LOCAL.unpack(header)
    later = bool(flags & 0x0008)  # sizes and checksum stand behind the data
    wide = 0xFFFFFFFF  # ... or in the extra field
    return (
        signature == b"PK\x03\x04"
        and flags == info.flag_bits
        and method == info.compress_type
        and name_length == len(name)
        and name == info.orig_filename.encode()
        and (crc == info.CRC or (later and crc == 0))
        and (packed in {info.compress_size, wide} or (later and packed == 0))
        and (size in {info.file_size, wide} or (later and size == 0))
    )


def _data_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    return int(info.header_offset + _LOCAL.size + name_length + extra_length)


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")  # noqa: PTH123  # closed by whoever asked
    except OSError as error:
        raise StoreError(f"cannot open {path}", error=error, path=path) from error


def _some(members: Mapping[str, Any]) -> str:
    return ", ".join(sorted(members)[:5]) or "nothing"
