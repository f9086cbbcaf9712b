"""`formats.cursor`: bytes in order, numbers of all sizes, and no step beyond the end or read beyond the window."""

from __future__ import annotations

import struct

import pytest

from safepoint.errors import CorruptionError
from safepoint.formats.cursor import Cursor

DATA = bytes(range(200))
LARGEST = (1 << 64) - 1


class Reads:
    """A file that remembers what was read."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, length: int) -> bytes:
        self.asked.append((start, length))
        return self.data[start : start + length]


def over(data: bytes, *, start: int = 0, window: int = 16) -> Cursor:
    return Cursor(Reads(data), start, len(data), file="f", window=window)


def encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


@pytest.mark.parametrize("window", [1, 7, 16, 1000])
def test_bytes_come_in_order_whatever_the_window(window: int) -> None:
    cursor = Cursor(Reads(), 3, 190, file="f", window=window)
    assert cursor.byte() == 3
    assert cursor.take(20) == DATA[4:24]
    assert [cursor.byte() for _ in range(20)] == list(DATA[24:44])
    cursor.skip(50)
    assert cursor.position == 94
    assert cursor.take(96) == DATA[94:190]
    assert cursor.position == cursor.stop == 190


def test_no_more_is_read_than_the_window_and_nothing_twice() -> None:
    reads = Reads()
    cursor = Cursor(reads, 0, 200, file="f", window=16)
    for _ in range(16):
        cursor.byte()
    assert reads.asked == [(0, 16)]
    cursor.skip(100)
    assert reads.asked == [(0, 16)]
    assert cursor.byte() == 116
    assert reads.asked == [(0, 16), (116, 16)]
    cursor.take(40)
    assert reads.asked[-1] == (117, 40)


def test_the_window_ends_with_the_stretch() -> None:
    reads = Reads()
    assert Cursor(reads, 190, 195, file="f", window=16).byte() == 190
    assert reads.asked == [(190, 5)]
    reads = Reads(bytes(1 << 20))
    Cursor(reads, 0, 1 << 20, file="f").byte()
    assert reads.asked == [(0, 256 << 10)]


def test_a_skip_within_the_window_reads_nothing() -> None:
    reads = Reads()
    cursor = Cursor(reads, 0, 200, file="f", window=16)
    cursor.byte()
    cursor.skip(14)
    assert cursor.byte() == 15
    assert reads.asked == [(0, 16)]
    cursor.skip(0)
    assert cursor.byte() == 16
    assert reads.asked == [(0, 16), (16, 16)]
    cursor.skip(15)
    assert (cursor.byte(), reads.asked) == (32, [(0, 16), (16, 16), (32, 16)])


@pytest.mark.parametrize("step", ["byte", "take", "skip", "number"])
def test_nothing_is_beyond_the_end(step: str) -> None:
    cursor = Cursor(Reads(), 0, 4, file="f")
    cursor.skip(4)
    with pytest.raises(CorruptionError, match="f is damaged, or cut short") as caught:
        {
            "byte": cursor.byte,
            "take": lambda: cursor.take(1),
            "skip": lambda: cursor.skip(1),
            "number": lambda: cursor.number(struct.Struct("<H")),
        }[step]()
    assert caught.value.file == "f"


@pytest.mark.parametrize("count", [-1, 5, 1 << 63])
def test_a_skip_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(CorruptionError, match="ends early"):
        Cursor(Reads(), 0, 4, file="f").skip(count)


def test_a_number_beyond_the_end_is_asked_of_nobody() -> None:
    reads = Reads()
    with pytest.raises(CorruptionError):
        Cursor(reads, 0, 4, file="f").take(1 << 62)
    assert reads.asked == []


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 300, 1 << 35, LARGEST - 1, LARGEST])
def test_a_varint(value: int) -> None:
    cursor = over(encoded(value) + b"\7")
    assert cursor.varint() == value
    assert cursor.byte() == 7


def test_a_varint_is_of_64_bits_and_ten_bytes_at_most() -> None:
    assert over(b"\xff" * 9 + b"\x7f").varint() == LARGEST
    assert over(b"\x80" * 9 + b"\x02").varint() == 0
    with pytest.raises(CorruptionError, match="a number without end") as caught:
        over(b"\x80" * 10 + b"\x00").varint()
    assert caught.value.file == "f"


def test_a_packed_number() -> None:
    assert over(struct.pack("<Hd", 513, 1.5)).number(struct.Struct("<H")) == 513


def test_a_line_ends_and_is_short() -> None:
    cursor = over("größe\nrest".encode())
    assert (cursor.line(), cursor.take(4)) == ("größe", b"rest")
    assert over(b"\xff\n").line() == "\ufffd"
    assert over(b"x" * 1024 + b"\n").line() == "x" * 1024
    with pytest.raises(CorruptionError, match="a name without end") as caught:
        over(b"x" * 1025 + b"\n").line()
    assert caught.value.file == "f"
    with pytest.raises(CorruptionError, match="ends early"):
        over(b"no end").line()
