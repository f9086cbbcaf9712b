"""Protocol-buffer messages, field by field: what a reader does not ask for is skipped, and never read from the disk.

Source: https://protobuf.dev/programming-guides/encoding. Groups, which nobody writes any more, are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from safepoint.errors import CorruptionError
from safepoint.formats.cursor import Cursor

_MAX_TEXT_BYTES = 16 << 20
_WINDOW_BYTES = 4 << 10
_FIXED32, _FIXED64 = struct.Struct("<I"), struct.Struct("<Q")


class Field(NamedTuple):
    """A field: a number, of `width` bytes or of any (0), or where its bytes are."""

    number: int
    value: int
    start: int
    stop: int
    width: int = 0

    @property
    def is_bytes(self) -> bool:
        """Whether it is a text, bytes, or a message."""
        return self.start >= 0

    @property
    def signed(self) -> int:
        """A number, as `int64`."""
        return self.value - (1 << 64) if self.value >> 63 else self.value


class Message:
    """A message somewhere in a file.

    Args:
        read: (offset, length) → bytes.
        start: of its fields.
        stop: the byte after its last.
        file: it is in.
    """

    __slots__ = ("file", "read", "start", "stop")

    def __init__(self, read: Callable[[int, int], bytes], start: int, stop: int, *, file: str) -> None:
        self.read = read
        self.start = start
        self.stop = stop
        self.file = file

    @staticmethod
    def of(data: bytes, *, file: str) -> Message:
        """A message in memory."""
        return Message(lambda start, length: data[start : start + length], 0, len(data), file=file)

    def fields(self) -> Iterator[Field]:
        """Its fields in order.

        Raises:
            CorruptionError: it is no message, or a field does not end inside it.
        """
        cursor = Cursor(self.read, self.start, self.stop, file=self.file, window=_WINDOW_BYTES)
        while cursor.position < self.stop:
            tag = cursor.varint()
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                yield Field(number, cursor.varint(), -1, -1)
            elif wire == 1:
                yield Field(number, cursor.number(_FIXED64), -1, -1, 8)
            elif wire == 5:
                yield Field(number, cursor.number(_FIXED32), -1, -1, 4)
            elif wire == 2:
                length = cursor.varint()
                start = cursor.position
                cursor.skip(length)
                yield Field(number, 0, start, start + length)
            else:
                raise CorruptionError(f"{self.file} is damaged: no message of protocol buffers", file=self.file)

    def inner(self, field: Field) -> Message:
        """The message in a field."""
        self._check_bytes(field)
        return Message(self.read, field.start, field.stop, file=self.file)

    def content(self, field: Field) -> bytes:
        """The bytes in a field.

        Raises:
            CorruptionError: there are too many for a text or a few numbers.
        """
        self._check_bytes(field)
        if field.stop - field.start > _MAX_TEXT_BYTES:
            raise CorruptionError(f"{self.file} is damaged: a text of {field.stop - field.start} bytes", file=self.file)
        return self.read(field.start, field.stop - field.start)

    def text(self, field: Field) -> str:
        """The text in a field."""
        return self.content(field).decode("utf-8", "replace")

    def numbers(self, field: Field) -> list[int]:
        """The numbers of a repeated field: one, or packed ones."""
        if not field.is_bytes:
            return [field.signed]
        return varints(self.content(field), file=self.file)

    def _check_bytes(self, field: Field) -> None:
        if not field.is_bytes:
            raise CorruptionError(f"{self.file} is damaged: a number in place of a message", file=self.file)


def varints(data: bytes, *, file: str) -> list[int]:
    """Packed numbers, as `int64`.

    Raises:
        CorruptionError: the last one does not end.
    """
    cursor = Cursor(lambda start, length: data[start : start + length], 0, len(data), file=file)
    found = []
    while cursor.position < len(data):
        value = cursor.varint()
        found.append(value - (1 << 64) if value >> 63 else value)
    return found
