"""A place in a file that moves on: numbers, texts and what lies between, each inside what is left."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, final

from safepoint.errors import CorruptionError


@final
class Cursor:
    """Bytes taken one after another from a stretch of a file; no more is read at a time than `window`."""

    def __init__(
        self, read: Callable[[int, int], bytes], start: int, stop: int, *, file: str, window: int = 256 << 10
    ) -> None:
        self._read = read
        self.stop = stop
        self._size = window
        self._window = b""
        self._base = start
        self._used = 0
        self.file = file

    @property
    def position(self) -> int:
        """Where the next byte is taken from."""
        return self._base + self._used

    def byte(self) -> int:
        """The next byte, as a number."""
        used = self._used
        if used >= len(self._window):
            return self.take(1)[0]
        self._used = used + 1
        return self._window[used]

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            CorruptionError: there are not as many; nothing was allocated.
        """
        end = self._used + count
        if end > len(self._window):
            if count > self.stop - self.position:
                raise CorruptionError(f"{self.file} is damaged, or cut short: it ends early", file=self.file)
            self._base += self._used
            self._window = self._read(self._base, min(max(count, self._size), self.stop - self._base))
            self._used, end = 0, count
        data = self._window[self._used : end]
        self._used = end
        return data

    def number(self, layout: struct.Struct) -> Any:
        """The number that is packed like `layout`."""
        return layout.unpack(self.take(layout.size))[0]

    def varint(self) -> int:
        """A number of 64 bits at most, seven of them a byte, the lowest first."""
        found = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found & 0xFFFFFFFFFFFFFFFF
        raise CorruptionError(f"{self.file} is damaged: a number without end", file=self.file)

    def skip(self, count: int) -> None:
        """Go on `count` bytes later; they are not read.

        Raises:
            CorruptionError: there are not as many.
        """
        if not 0 <= count <= self.stop - self.position:
            raise CorruptionError(f"{self.file} is damaged, or cut short: it ends early", file=self.file)
        if self._used + count <= len(self._window):
            self._used += count
        else:
            self._base, self._used, self._window = self.position + count, 0, b""

    def line(self) -> str:
        """Text up to the end of the line."""
        found = bytearray()
        while (byte := self.take(1)) != b"\n":
            found += byte
            if len(found) > 1024:
                raise CorruptionError(f"{self.file} is damaged: a name without end", file=self.file)
        return found.decode("utf-8", "replace")
