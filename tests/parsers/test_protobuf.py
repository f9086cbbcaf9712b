"""`formats.protobuf`: every wire type, nested and packed fields; what is not asked for is not read."""

from __future__ import annotations

import struct

import pytest
from tests.attacks.test_onnx import field, varint

from safepoint.errors import CorruptionError
from safepoint.formats import protobuf
from safepoint.formats.protobuf import Field, Message, varints

LARGEST = (1 << 64) - 1


def fixed(number: int, wire: int, data: bytes) -> bytes:
    return varint(number << 3 | wire) + data


def test_every_kind_of_field() -> None:
    data = (
        field(1, 300) + fixed(2, 1, struct.pack("<Q", LARGEST)) + fixed(3, 5, struct.pack("<I", 7)) + field(4, b"abc")
    )
    message = Message.of(data, file="f")
    one, two, three, four = message.fields()
    assert (one.number, one.value, two.number, two.value, three.number, three.value) == (1, 300, 2, LARGEST, 3, 7)
    assert (four.number, four.stop - four.start) == (4, 3)
    assert [item.is_bytes for item in (one, two, three, four)] == [False, False, False, True]
    assert (message.content(four), message.text(four)) == (b"abc", "abc")


def test_bytes_may_begin_the_message() -> None:
    assert Field(1, 0, 0, 3).is_bytes
    assert not Field(1, 0, -1, -1).is_bytes


@pytest.mark.parametrize(
    ("value", "signed"), [(0, 0), (5, 5), (LARGEST, -1), (1 << 63, -(1 << 63)), ((1 << 63) - 1, (1 << 63) - 1)]
)
def test_signed_numbers(value: int, signed: int) -> None:
    (item,) = Message.of(field(1, value), file="f").fields()
    assert item.signed == signed
    assert Message.of(b"", file="f").numbers(item) == [signed]
    assert varints(varint(7) + varint(value), file="f") == [7, signed]


def test_packed_numbers() -> None:
    message = Message.of(field(1, varint(1) + varint(300) + varint(LARGEST)), file="f")
    (item,) = message.fields()
    assert message.numbers(item) == [1, 300, -1]
    assert varints(b"", file="f") == []
    with pytest.raises(CorruptionError, match="ends early"):
        varints(b"\x80", file="f")


def test_a_message_in_a_message() -> None:
    message = Message.of(field(9, field(1, 5) + field(2, b"xy")), file="f")
    (item,) = message.fields()
    inner = message.inner(item)
    number, text = inner.fields()
    assert (number.value, inner.content(text)) == (5, b"xy")


def test_a_number_is_no_message_and_no_text() -> None:
    message = Message.of(field(1, 5), file="f")
    (item,) = message.fields()
    for read in (message.inner, message.content, message.text):
        with pytest.raises(CorruptionError, match="a number in place of a message") as caught:
            read(item)
        assert caught.value.file == "f"


@pytest.mark.parametrize("wire", [3, 4, 6, 7])
def test_groups_and_what_is_no_wire_type_are_refused(wire: int) -> None:
    with pytest.raises(CorruptionError, match="no message of protocol buffers") as caught:
        list(Message.of(varint(1 << 3 | wire), file="f").fields())
    assert caught.value.file == "f"


@pytest.mark.parametrize("data", [varint(1 << 3 | 2) + varint(4) + b"abc", varint(1 << 3 | 1) + b"1234567", b"\x80"])
def test_a_field_ends_inside_its_message(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="ends early"):
        list(Message.of(data, file="f").fields())


def test_what_is_not_asked_for_is_not_read() -> None:
    data = field(1, bytes(1 << 20)) + field(2, 7)
    asked: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return data[start : start + length]

    assert [item.value for item in Message(read, 0, len(data), file="f").fields()] == [0, 7]
    assert sum(length for _, length in asked) <= 4096 + 10
    assert max(length for _, length in asked) == 4096


def test_a_text_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert protobuf._MAX_TEXT_BYTES == 16 << 20
    monkeypatch.setattr(protobuf, "_MAX_TEXT_BYTES", 4)
    message = Message.of(field(1, b"abcd") + field(2, b"abcde"), file="f")
    fits, too_long = message.fields()
    assert message.content(fits) == b"abcd"
    with pytest.raises(CorruptionError, match="a text of 5 bytes") as caught:
        message.content(too_long)
    assert caught.value.file == "f"
