"""Zip files, read strictly: every member checked before any is read, none extracted by name.

Invariant: central directory and local headers agree, members lie one after another without overlap, nothing lies
between or behind them: two readers cannot see two archives. Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safepoint.codec.crc32 import crc32
from safepoint.errors import CorruptionError, UnsupportedError

Read = Callable[[int, int], bytes]
"""(offset, length) → bytes; raises where the file ends before."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_LATER, _UTF8, _LEVELS = 0x0008, 0x0800, 0x0006
_DESCRIPTOR_BYTES = 24
_WIDE = 0xFFFFFFFF
_MAX_MEMBERS = 1_000_000
_MAX_DIRECTORY_BYTES = 256 << 20
_MAX_EXPANSION = 1032  # deflate can do no more
_PIECE_BYTES = 4 << 20
_WINDOW_BYTES = 64 << 10


class Member(NamedTuple):
    """A checked member: its data is at `start`, `packed` bytes long, `num_bytes` when it is unpacked.

    Its checksum is None in an archive that has none: PyTorch can be told to write zeros.
    """

    name: str
    start: int
    packed: int
    num_bytes: int
    crc: int | None
    deflated: bool


class _Entry(NamedTuple):
    name: bytes
    header: int
    flags: int
    method: int
    crc: int
    packed: int
    num_bytes: int


def read_members(read: Read, file_bytes: int, *, file: str) -> Mapping[str, Member]:
    """The members of a zip file by name; reads its directory and the head of each member.

    Raises:
        CorruptionError: not a whole zip file, or one made to be read in two ways.
        UnsupportedError: encrypted, or compressed in a way that is not read.
    """

    def wrong(what: str, name: object = None) -> CorruptionError:
        return CorruptionError(f"{file} is not a sound zip file: {what}", file=file, found=name)

    start, size, count = _directory(read, file_bytes, wrong)
    if count > _MAX_MEMBERS or size > _MAX_DIRECTORY_BYTES or size < count * _CENTRAL.size:
        raise wrong(f"a directory of {count} members in {size} bytes")
    entries = list(_entries(read(start, size), count, wrong))
    checked = any(entry.crc for entry in entries)
    members: dict[str, Member] = {}
    folded: set[str] = set()
    position = slack = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        name = _name(entry, wrong)
        if name in members or name.casefold() in folded:
            raise wrong("a member stands twice", repr(name[:80]))
        folded.add(name.casefold())
        if entry.flags & ~(_LATER | _UTF8 | _LEVELS) or entry.method not in {0, 8}:
            raise UnsupportedError(
                f"{name[:80]!r} in {file} is encrypted, or compressed in a way that is not read",
                expected="stored or deflated",
                found=f"method {entry.method}, flags {entry.flags:#x}",
            )
        if not 0 <= entry.header - position <= slack:
            raise wrong("members overlap, or something lies between them", repr(name[:80]))
        data = _data_start(read, entry, start, wrong)
        if entry.method == 0 and entry.packed != entry.num_bytes:
            raise wrong("a member has two sizes", repr(name[:80]))
        if entry.num_bytes > entry.packed * _MAX_EXPANSION + 64:
            raise wrong(f"{entry.packed} bytes cannot become {entry.num_bytes}", repr(name[:80]))
        position = data + entry.packed
        slack = _DESCRIPTOR_BYTES if entry.flags & _LATER else 0
        members[name] = Member(
            name, data, entry.packed, entry.num_bytes, entry.crc if checked else None, entry.method == 8
        )
    if not 0 <= start - position <= slack:
        raise wrong("bytes that belong to no member lie before its directory")
    return members


def read_member(read: Read, member: Member, *, file: str) -> bytes:
    """The content of a member, its size and checksum verified; whoever asks has looked at `num_bytes`.

    Raises:
        CorruptionError: it is not what was written.
    """
    data = read(member.start, member.packed)
    if member.deflated:
        unpacker = zlib.decompressobj(-15)
        try:
            data = unpacker.decompress(data, member.num_bytes + 1)
        except zlib.error as error:
            raise _damaged(member, file, found=error) from error
        if len(data) != member.num_bytes or not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
            raise _damaged(member, file, expected=f"{member.num_bytes} bytes", found="another number")
    if member.crc is not None and crc32(data) != member.crc:
        raise _damaged(member, file, expected=f"CRC {member.crc:08x}", found=f"{crc32(data):08x}")
    return data


def read_prefix(read: Read, member: Member, num_bytes: int, *, file: str) -> bytes:
    """The first bytes of a deflated member, not verified: unpacks no more than it needs.

    Raises:
        CorruptionError: it is not what was written.
    """
    unpacker = zlib.decompressobj(-15)
    found = bytearray()
    position = 0
    try:
        while len(found) < num_bytes and position < member.packed:
            piece = read(member.start + position, min(_WINDOW_BYTES, member.packed - position))
            position += len(piece)
            found += unpacker.decompress(unpacker.unconsumed_tail + piece, num_bytes - len(found))
    except zlib.error as error:
        raise _damaged(member, file, found=error) from error
    if len(found) < num_bytes:
        raise _damaged(member, file, expected=f"{num_bytes} bytes", found=f"{len(found)} bytes")
    return bytes(found)


def check_member(read: Read, member: Member, *, file: str) -> None:
    """Read a stored member piece by piece and compare its checksum; keeps nothing.

    Raises:
        CorruptionError: it is not what was written.
    """
    crc = 0
    if member.crc is None:
        return
    for start in range(0, member.num_bytes, _PIECE_BYTES):
        crc = crc32(read(member.start + start, min(_PIECE_BYTES, member.num_bytes - start)), crc)
    if crc != member.crc:
        raise _damaged(member, file, expected=f"CRC {member.crc:08x}", found=f"{crc:08x}")


def check_content(data: NDArray[np.uint8], member: Member, *, file: str) -> None:
    """Compare the checksum of a stored member with that of its content, which was read.

    Raises:
        CorruptionError: it is not what was written.
    """
    if member.crc is not None and crc32(data.data) != member.crc:
        raise _damaged(member, file, expected=f"CRC {member.crc:08x}", found=f"{crc32(data.data):08x}")


def _damaged(member: Member, file: str, *, expected: str | None = None, found: object) -> CorruptionError:
    return CorruptionError(
        f"{member.name[:80]!r} in {file} is damaged", file=file, name=member.name, expected=expected, found=found
    )


def _directory(read: Read, file_bytes: int, wrong: Callable[..., CorruptionError]) -> tuple[int, int, int]:
    """Where the central directory is: offset, length, number of members."""
    if file_bytes < _END.size:
        raise wrong("it is too short")
    end = file_bytes - _END.size
    signature, disk, first, here, count, size, start, comment = _END.unpack(read(end, _END.size))
    if signature != b"PK\x05\x06" or comment or disk or first or here != count:
        raise wrong("it does not end with its directory")
    if count == 0xFFFF or _WIDE in {size, start}:
        end -= _LOCATOR.size
        signature, disk, where, disks = _LOCATOR.unpack(read(end, _LOCATOR.size))
        end -= _END64.size
        if signature != b"PK\x06\x07" or disk or disks != 1 or where != end:
            raise wrong("its zip64 locator leads elsewhere")
        signature, rest, _, _, disk, first, here, count, size, start = _END64.unpack(read(end, _END64.size))
        if signature != b"PK\x06\x06" or rest != _END64.size - 12 or disk or first or here != count:
            raise wrong("its zip64 directory is damaged")
    elif end >= _LOCATOR.size and read(end - _LOCATOR.size, 4) == b"PK\x06\x07":
        # Written for a size that was not known before: both must say the same.
        where = _LOCATOR.unpack(read(end - _LOCATOR.size, _LOCATOR.size))[2]
        if where != end - _LOCATOR.size - _END64.size:
            raise wrong("its zip64 locator leads elsewhere")
        wide = _END64.unpack(read(where, _END64.size))
        if wide[0] != b"PK\x06\x06" or wide[7:] != (count, size, start):
            raise wrong("it has two directories")
        end = where
    if start + size != end:
        raise wrong("its directory is not where it says")
    return start, size, count


def _entries(directory: bytes, count: int, wrong: Callable[..., CorruptionError]) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(directory):
            raise wrong("its directory is cut short")
        fields = _CENTRAL.unpack_from(directory, position)
        signature, _, _, flags, method, _, _, crc, packed, size, n, extra, comment, disk, _, _, header = fields
        position += _CENTRAL.size
        name = directory[position : position + n]
        more = directory[position + n : position + n + extra]
        position += n + extra + comment
        if signature != b"PK\x01\x02" or position > len(directory) or disk:
            raise wrong("its directory is damaged")
        size, packed, header = _widened(more, [size, packed, header], wrong)
        yield _Entry(name, header, flags, method, crc, packed, size)
    if position != len(directory):
        raise wrong("its directory is longer than its members")


def _widened(extra: bytes, narrow: list[int], wrong: Callable[..., CorruptionError]) -> list[int]:
    """Numbers that did not fit in 32 bits, from the zip64 field; the others as they are."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if tag == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            return [wide.pop(0) if value == _WIDE and wide else value for value in narrow]
    if _WIDE in narrow:
        raise wrong("a size of 64 bits is missing")
    return narrow


def _name(entry: _Entry, wrong: Callable[..., CorruptionError]) -> str:
    try:
        name = entry.name.decode("utf-8" if entry.flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise wrong("a name that is no text", entry.name[:80]) from error
    parts = name.removesuffix("/").split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise wrong("a name that no archive has", repr(name[:80]))
    return name


def _data_start(read: Read, entry: _Entry, end: int, wrong: Callable[..., CorruptionError]) -> int:
    """Where a member's data starts, if its local header says what the directory says."""
    if entry.header + _LOCAL.size + len(entry.name) > end:
        raise wrong("a member is outside the file", entry.name[:80])
    head = read(entry.header, _LOCAL.size + len(entry.name))
    signature, _, flags, method, _, _, crc, packed, size, n, extra = _LOCAL.unpack_from(head)
    start: int = entry.header + _LOCAL.size + n + extra
    if _WIDE in {packed, size}:
        size, packed = _widened(read(entry.header + _LOCAL.size + n, extra), [size, packed], wrong)
    later = bool(flags & _LATER)  # sizes and checksum stand behind the data
    same = (
        signature == b"PK\x03\x04"
        and flags == entry.flags
        and method == entry.method
        and head[_LOCAL.size :] == entry.name
        and n == len(entry.name)
        and (crc == entry.crc or (later and crc == 0))
        and (packed == entry.packed or (later and packed == 0))
        and (size == entry.num_bytes or (later and size == 0))
    )
    if not same or start + entry.packed > end:
        raise wrong("a member is described in two different ways", entry.name[:80])
    return start
