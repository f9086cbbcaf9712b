"""Texts of HDF5 objects read by our own parser: what it takes, and what it refuses, byte by byte."""

from __future__ import annotations

import struct

import pytest

from safepoint.codec import hdf5_texts
from safepoint.codec.hdf5_texts import texts_of
from safepoint.errors import CorruptionError

ANY_LENGTH = bytes([0x19, 1, 0, 0, 16, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0])
SCALAR = bytes([1, 0, 0, 0, 0, 0, 0, 0])
HEAP_AT = 512


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 8) * 8, b"\0")


def fixed(length: int) -> bytes:
    return bytes([0x13, 0, 0, 0]) + struct.pack("<I", length)


def attribute(name: bytes, kind: bytes, data: bytes, *, version: int = 1, space: bytes = SCALAR) -> bytes:
    sizes = struct.pack("<BxHHH", version, len(name) + 1, len(kind), len(space))
    return sizes + padded(name + b"\0") + padded(kind) + padded(space) + data


def place(length: int, index: int, at: int = HEAP_AT) -> bytes:
    return struct.pack("<IQI", length, at, index)


def message(body: bytes, kind: int = 0x0C, flags: int = 0) -> bytes:
    return struct.pack("<HHB3x", kind, len(padded(body)), flags) + padded(body)


def heap(*objects: tuple[int, bytes], signature: bytes = b"GCOL", version: int = 1, size: int | None = None) -> bytes:
    body = b"".join(struct.pack("<HHIQ", index, 1, 0, len(data)) + padded(data) for index, data in objects)
    return struct.pack("<4sB3xQ", signature, version, 16 + len(body) if size is None else size) + body


def object_with(*messages: bytes, heap: bytes = b"", elsewhere: bytes = b"", version: int = 1) -> bytes:
    """An object's header at 0, a heap at 512, whatever else at 1024."""
    block = b"".join(messages)
    header = struct.pack("<BxHII4x", version, len(messages), 1, len(block)) + block
    return (header.ljust(HEAP_AT, b"\0") + heap).ljust(1024, b"\0") + elsewhere


def read(data: bytes, *names: str) -> dict[str, str]:
    return texts_of(lambda start, length: data[start : start + length], len(data), 0, names or ("a", "b"), path="x.h5")


SOUND = object_with(
    message(b"", kind=0x11),
    message(attribute(b"a", ANY_LENGTH, place(3, 2))),
    message(struct.pack("<QQ", 1024, 80), kind=0x10),
    heap=heap((1, b"another"), (2, b"abc"), (0, b"")),
    elsewhere=message(attribute(b"b", fixed(6), b"text\0\0")).ljust(80, b"\0"),
)


def test_texts_of_both_kinds_wherever_their_messages_are() -> None:
    assert read(SOUND) == {"a": "abc", "b": "text"}
    assert read(SOUND, "b") == {"b": "text"}
    assert read(SOUND, "c") == {}


def test_a_text_that_has_no_bytes_has_no_heap() -> None:
    assert read(object_with(message(attribute(b"a", ANY_LENGTH, place(0, 0, 0))))) == {"a": ""}


def test_a_text_ends_with_its_first_zero_and_is_utf_8() -> None:
    assert read(object_with(message(attribute(b"a", fixed(8), "ß\0x".encode())))) == {"a": "ß"}
    assert read(object_with(message(attribute(b"a", fixed(2), b"\xff\xff")))) == {"a": "��"}
    assert read(object_with(message(attribute(b"a", fixed(1), b"xy")))) == {"a": "x"}


def test_parts_stand_at_multiples_of_eight() -> None:
    long = b"a name of twenty-one."
    data = object_with(
        message(attribute(long, fixed(4) + b"\1\2\3", b"text", space=SCALAR + b"\0" * 5), flags=1),
        message(attribute(b"b", ANY_LENGTH, place(4, 3))),
        heap=heap((1, b"x" * 17), (2, b"y" * 9), (3, b"more")),
    )
    assert read(data, long.decode(), "b") == {long.decode(): "text", "b": "more"}


@pytest.mark.parametrize(
    "data",
    [
        object_with(message(attribute(b"a", ANY_LENGTH, place(3, 1))), version=2),
        object_with(message(attribute(b"a", fixed(4), b"text"), flags=2)),
        object_with(message(attribute(b"a", fixed(4), b"text"), kind=0x0D)),
        object_with(message(attribute(b"a", fixed(4), b"text", version=2))),
        object_with(message(attribute(b"a", fixed(4), b"text", space=bytes([1, 1, 0, 0, 0, 0, 0, 0])))),
        object_with(message(attribute(b"a", fixed(4), b"text", space=bytes([2, 0, 0, 0])))),
        object_with(message(attribute(b"a", bytes([0x19, 0]) + ANY_LENGTH[2:], place(3, 1)))),  # a sequence
        object_with(message(attribute(b"a", bytes([0x10]) + fixed(4)[1:], b"text"))),  # a number
        object_with(message(attribute(b"a", fixed(4)[:7], b"text"))),
        object_with(message(b"\1\0\2\0\0\0")),
    ],
    ids=range(10),
)
def test_what_is_of_a_kind_that_is_not_known_is_left_out(data: bytes) -> None:
    assert read(data) == {}


A_PLACE = message(attribute(b"a", ANY_LENGTH, place(3, 2)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SOUND[:15],
        SOUND[:1024],
        object_with(A_PLACE, heap=heap((2, b"abc"), signature=b"GCOM")),
        object_with(A_PLACE, heap=heap((2, b"abc"), version=2)),
        object_with(A_PLACE, heap=heap((2, b"abc"), size=1 << 40)),
        object_with(A_PLACE, heap=heap((2, b"abc"), size=32)),
        object_with(A_PLACE, heap=heap((2, b"ab"))),
        object_with(A_PLACE, heap=heap((1, b"abc"))),
        object_with(A_PLACE, heap=heap((0, b""), (2, b"abc"))),
        object_with(message(attribute(b"a", ANY_LENGTH, place(3, 2)[:12])[:-4])),
        object_with(message(attribute(b"a", ANY_LENGTH, place(3, 2, 1 << 60)))),
        object_with(message(struct.pack("<QQ", 1024, 80)[:8], kind=0x10)),
        object_with(message(struct.pack("<QQ", 1 << 63, 80), kind=0x10)),
        object_with(message(struct.pack("<QQ", 0, 1 << 63), kind=0x10)),
        object_with(struct.pack("<HHB3x", 0x0C, 999, 0) + b"short"),
    ],
    ids=range(16),
)
def test_what_contradicts_itself_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="a text is not where it should be"):
        read(data)


def test_blocks_that_lead_to_each_other_come_to_an_end() -> None:
    again = message(struct.pack("<QQ", 16, 24), kind=0x10)
    with pytest.raises(CorruptionError):
        read(object_with(again))


def test_no_more_is_read_than_a_text_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    large = object_with(A_PLACE, heap=heap((2, b"abc"), (3, b"x" * 160)))
    assert len(heap((2, b"abc"), (3, b"x" * 160))) == 216
    monkeypatch.setattr(hdf5_texts, "_MOST_BYTES", 216)
    assert read(large) == {"a": "abc"}
    monkeypatch.setattr(hdf5_texts, "_MOST_BYTES", 215)
    with pytest.raises(CorruptionError):
        read(large)
    monkeypatch.setattr(hdf5_texts, "_MOST_BYTES", len(A_PLACE) - 1)
    with pytest.raises(CorruptionError):
        read(object_with(A_PLACE, heap=heap((2, b"abc"))))
