"""`codec.header`: what is built is what is parsed, padded as it was asked, within the limits and not beyond them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safepoint.codec import Entry, build_header, header, parse_header, read_header
from safepoint.errors import CorruptionError
from safepoint.limits import MAX_DIMENSION, MAX_RANK

ENTRIES = [Entry("b", "F32", (2, 2), 0, 16), Entry("a/é", "U8", (), 16, 17), Entry("empty", "I64", (0,), 17, 17)]


def parse(data: bytes, size: int) -> Any:
    return read_header(lambda start, length: data[start : start + length], size, file="f")


def made(table: dict[str, Any], *, pad: int = 0) -> bytes:
    text = json.dumps(table).encode() + b" " * pad
    return len(text).to_bytes(8, "little") + text


def entry(shape: list[int], stop: int, dtype: str = "U8") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}}


@pytest.mark.parametrize("size", [None, 4096])
def test_what_is_built_is_what_is_parsed(size: int | None) -> None:
    data = build_header(ENTRIES, {"k": "v"}, size=size)
    assert len(data) % 8 == 0
    assert size is None or len(data) == size
    found = parse(data, len(data) + 17)
    assert (list(found.entries), found.metadata, found.data_start) == (ENTRIES, {"k": "v"}, len(data))
    assert [item.dtype_name for item in found.entries] == ["float32", "uint8", "int64"]


def test_a_header_fits_its_room_to_the_byte() -> None:
    needed = 8 + len(build_header(ENTRIES, {})[8:].rstrip(b" "))
    data = build_header(ENTRIES, {}, size=needed)
    assert len(data) == needed
    assert not data.endswith(b" ")
    with pytest.raises(ValueError, match=f"header needs {needed} bytes, {needed - 1} were reserved"):
        build_header(ENTRIES, {}, size=needed - 1)


def test_a_file_without_tensors_or_metadata() -> None:
    data = build_header([], {})
    assert data == (8).to_bytes(8, "little") + b"{}      "
    assert parse(data, 16) == ((), {}, 16)
    smallest = (2).to_bytes(8, "little") + b"{}"
    assert parse(smallest, 10) == ((), {}, 10)


@pytest.mark.parametrize("shape", [[1] * MAX_RANK, [MAX_DIMENSION, 0], []])
def test_shapes_at_the_limit_are_read(shape: list[int]) -> None:
    size = 0 if 0 in shape else 1
    data = made(entry(shape, size))
    assert parse(data, len(data) + size).entries == (Entry("w", "U8", tuple(shape), 0, size),)


@pytest.mark.parametrize("shape", [[1] * (MAX_RANK + 1), [MAX_DIMENSION + 1, 0], [-1], [True], [1.0], "1", None])
def test_shapes_beyond_it_are_not(shape: Any) -> None:
    data = made(entry(shape, 1))
    with pytest.raises(CorruptionError, match="a shape must be a list of whole numbers") as caught:
        parse(data, len(data) + 1)
    assert (caught.value.file, caught.value.name) == ("f", "w")


def test_the_number_of_tensors_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in ("a", "b")}
    data = made({**table, "__metadata__": {"k": "v"}})
    monkeypatch.setattr(header, "MAX_TENSORS", 2)
    assert len(parse(data, len(data)).entries) == 2
    monkeypatch.setattr(header, "MAX_TENSORS", 1)
    with pytest.raises(CorruptionError, match="it has more than 1 entries"):
        parse(data, len(data))


def test_the_length_of_a_header_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made({}, pad=6)
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 8)
    assert parse(data, len(data)).data_start == 16
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 7)
    with pytest.raises(CorruptionError, match="cut short") as caught:
        parse(data, len(data))
    assert caught.value.expected == "a header of 2 to 7 bytes"


def test_no_more_is_read_than_the_file_has() -> None:
    asked = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return b"\0" * length

    with pytest.raises(CorruptionError) as caught:
        read_header(read, 5, file="f")
    assert asked == [(0, 5)]
    assert caught.value.found == "0 bytes announced in a file of 5"


def test_a_header_of_another_length_than_announced() -> None:
    with pytest.raises(CorruptionError, match="must be a JSON object"):
        parse_header((4).to_bytes(8, "little"), b"{}", file="f", file_bytes=12)


@pytest.mark.parametrize("metadata", [{"k": 1}, {"k": None}, [], "x", {"k": {}}])
def test_metadata_is_text(metadata: Any) -> None:
    data = made({"__metadata__": metadata})
    with pytest.raises(CorruptionError, match="__metadata__ must map strings to strings"):
        parse(data, len(data))


@pytest.mark.parametrize(("shape", "stop"), [([3], 2), ([3], 4), ([2, 2], 3)])
def test_a_tensor_has_the_bytes_of_its_shape(shape: list[int], stop: int) -> None:
    data = made(entry(shape, stop))
    with pytest.raises(CorruptionError, match=r"shape \[.*\] of U8 needs \d bytes") as caught:
        parse(data, len(data) + stop)
    assert caught.value.found == str(stop) or caught.value.found == stop


def test_a_file_ends_where_its_tensors_end() -> None:
    data = made(entry([3], 3))
    for size in (2, 4):
        with pytest.raises(CorruptionError, match="its size is wrong") as caught:
            parse(data, len(data) + size)
        assert caught.value.expected == f"{len(data) + 3} bytes"
