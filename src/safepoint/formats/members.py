"""Members of a zip file as bytes to read: in ranges where they are stored, verified whenever one is read as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from safepoint.codec import Member, check_content, check_member, read_member, read_members, read_prefix
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.files import Readable
from safepoint.tree.leaves import Bytes

_MAX_UNPACKED_BYTES = 1 << 30
_MAX_EXPANSION = 100


@final
class Archive:
    """An opened zip file, checked as a whole.

    Attributes:
        file: that it is in.
        members: by name.
    """

    def __init__(self, file: Readable) -> None:
        self.file = file
        self.members: Mapping[str, Member] = read_members(file.read, file.num_bytes, file=file.path)
        self._verified: set[str] = set()

    def content(self, name: str, *, at_most: int) -> bytes:
        """A small member as a whole.

        Raises:
            CorruptionError: there is none, or it is too large or damaged.
        """
        member = self.members.get(name)
        if member is None or member.num_bytes > at_most:
            found = "no such member" if member is None else f"{member.num_bytes} bytes"
            raise CorruptionError(f"{self.file.path} has no {name} that can be read", file=self.file.path, found=found)
        return read_member(self.file.read, member, file=self.file.path)

    def part(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes of a member; of a stored one no others are read."""
        member = self.members[name]
        if not 0 <= start <= stop <= member.num_bytes:
            raise CorruptionError(f"{name} in {self.file.path} is too short", file=self.file.path, name=name)
        if member.deflated:
            self._check_memory(member, stop)
            return np.frombuffer(bytearray(read_prefix(self.file.read, member, stop, file=self.file.path)), np.uint8)[
                start:
            ]
        return self.file.array(member.start + start, stop - start)

    def whole(self, name: str, start: int, stop: int) -> Bytes:
        """The same, from a member whose checksum was compared."""
        member = self.members[name]
        if member.deflated:
            self._check_memory(member, member.num_bytes)
            unpacked = bytearray(read_member(self.file.read, member, file=self.file.path))
            return np.frombuffer(unpacked, np.uint8)[start:stop]
        if name in self._verified:
            return self.part(name, start, stop)
        if (start, stop) == (0, member.num_bytes):  # the usual case: read once
            data = self.part(name, start, stop)
            check_content(data, member, file=self.file.path)
        else:
            check_member(self.file.read, member, file=self.file.path)
            data = self.part(name, start, stop)
        self._verified.add(name)
        return data

    def _check_memory(self, member: Member, num_bytes: int) -> None:
        if num_bytes > max(_MAX_UNPACKED_BYTES, member.packed * _MAX_EXPANSION):
            raise UnsupportedError(
                f"{member.name[:80]!r} in {self.file.path} would take {num_bytes:,} bytes of memory",
                found=f"{member.packed:,} bytes compressed",
                hint="save it uncompressed",
            )
