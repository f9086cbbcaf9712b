"""Writes zip files front to back: members stored, their data aligned, no clock in them, 64-bit fields where needed.

Source: PKWARE APPNOTE 6.3.10, sections 4.3, 4.4.4 and 4.5.3.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from typing import NamedTuple, final

from safepoint.codec import crc32
from safepoint.formats.writing.content import refuse_name
from safepoint.formats.writing.output import Output
from safepoint.tree.leaves import Bytes

_ALIGNMENT = 64
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_WIDE, _WIDE_COUNT = 0xFFFFFFFF, 0xFFFF  # stand where a number of 64 bits is told elsewhere
_LIMIT, _LIMIT_COUNT = _WIDE, _WIDE_COUNT  # from here on, it is
_LATER, _UTF8 = 0x0008, 0x0800
_PADDING = 0x4246  # the tag that PyTorch pads its members with, and everybody skips
_NO_DAY = 0x0021  # 1 January 1980, the first that a zip file knows


class _Member(NamedTuple):
    name: bytes
    flags: int
    crc: int
    num_bytes: int
    header: int


@final
class Zip:
    """A zip file on its way into `out`.

    Args:
        out: where it goes.
        title: of the format that it is, for refusals.
    """

    def __init__(self, out: Output, title: str) -> None:
        self._out = out
        self._title = title
        self._members: list[_Member] = []
        self._folded: set[str] = set()

    def add(self, name: str, num_bytes: int, pieces: Iterable[bytes | Bytes]) -> None:
        """A member of `num_bytes`, which `pieces` add up to.

        Raises:
            UnsupportedError: no archive has a member of that name, or of another that differs in case alone.
        """
        if name.casefold() in self._folded:  # one of them would be lost where it is unpacked
            raise refuse_name(name, self._title, "another differs from it in case alone")
        check_member_name(name, self._title)
        self._folded.add(name.casefold())
        iterator = iter(pieces)
        first = next(iterator, b"")
        later = len(first) < num_bytes  # its checksum is known only behind it
        flags = (_LATER if later else 0) | (0 if name.isascii() else _UTF8)
        member = _Member(name.encode(), flags, 0 if later else _crc32(first), num_bytes, self._out.position)
        self._out.append(self._local(member))
        crc = 0
        for piece in itertools.chain([first], iterator):
            crc = _crc32(piece, crc)
            self._out.append(piece)
        if later:
            size = "Q" if num_bytes >= _LIMIT else "I"
            self._out.append(struct.pack(f"<4sI{size}{size}", b"PK\x07\x08", crc, num_bytes, num_bytes))
        self._members.append(member._replace(crc=crc))

    def finish(self) -> None:
        """Write the directory, without which it is no zip file."""
        start = self._out.position
        for member in self._members:
            self._out.append(self._central(member))
        size, count = self._out.position - start, len(self._members)
        wide_count, wide_size = count >= _LIMIT_COUNT, start + size >= _LIMIT
        if wide_count or wide_size:
            end = self._out.position
            wide = _END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, size, start)
            self._out.append(wide + _LOCATOR.pack(b"PK\x06\x07", 0, end, 1))
        few = _WIDE_COUNT if wide_count else count
        self._out.append(_END.pack(b"PK\x05\x06", 0, 0, few, few, _narrow(size), _narrow(start), 0))

    @staticmethod
    def _local(member: _Member) -> bytes:
        wide = member.num_bytes >= _LIMIT
        extra = struct.pack("<HHQQ", 1, 16, member.num_bytes, member.num_bytes) if wide else b""
        end = member.header + _LOCAL.size + len(member.name) + len(extra) + 4
        padding = -end % _ALIGNMENT
        extra += struct.pack("<HH", _PADDING, padding) + bytes(padding)
        size = _narrow(member.num_bytes)
        name, version = member.name, 45 if wide else 20
        fields = (version, member.flags, 0, 0, _NO_DAY, member.crc, size, size, len(name), len(extra))
        return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra

    @staticmethod
    def _central(member: _Member) -> bytes:
        size, header = _narrow(member.num_bytes), _narrow(member.header)
        wide = [member.num_bytes] * 2 if size == _WIDE else []
        wide += [member.header] if header == _WIDE else []
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = 45 if wide else 20
        fields = (version, version, member.flags, 0, 0, _NO_DAY, member.crc, size, size, len(member.name), len(extra))
        return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, 0, header) + member.name + extra


def check_member_name(name: str, title: str) -> None:
    """Whether a zip file may have a member of that name, which programs may unpack to disk.

    Raises:
        UnsupportedError: it leads elsewhere, or is no text.
    """
    if {"", ".", ".."} & set(name.split("/")) or "\\" in name or not name.isprintable() or len(name.encode()) > 60_000:
        raise refuse_name(name, title, "no archive may have a member called so")


def _narrow(number: int) -> int:
    """What stands in a field of 32 bits."""
    return number if number < _LIMIT else _WIDE


def _crc32(data: bytes | Bytes, before: int = 0) -> int:
    return crc32(data if isinstance(data, bytes) else data.data, before)
