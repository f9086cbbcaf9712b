"""Hostile ONNX files: external data elsewhere, sizes that lie, messages without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.attacks.watching import read_all, refused

import safepoint


def varint(number: int) -> bytes:
    found = b""
    number &= (1 << 64) - 1
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def model(*tensors: bytes) -> bytes:
    graph = field(1, field(4, b"Identity")) + b"".join(field(5, tensor) for tensor in tensors)
    return field(1, 10) + field(2, b"test") + field(7, graph)


def tensor(
    dims: tuple[int, ...] = (4,), kind: int = 1, rest: bytes = field(9, b"\0" * 16), name: bytes = b"w"
) -> bytes:
    return b"".join(field(1, size) for size in dims) + field(2, kind) + field(8, name) + rest


def external(**entries: str) -> bytes:
    return b"".join(
        field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries.items()
    ) + field(14, 1)


PLACES = [
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "sub/../data",
    "link",
    "up/secret",
    "",
    ".",
    "data\0",
    "x" * 5000,
]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_beneath_the_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "data").write_bytes(b"\0" * 16)
    (folder / "link").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    (folder / "x").write_bytes(model(tensor(rest=external(location=place))))
    refused(folder / "x", safepoint.CorruptionError, "outside itself|damaged")


ENTRIES = [
    {"location": "data", "offset": "-1"}, {"location": "data", "length": "-1"}, {"location": "data", "offset": "1e3"},
    {"location": "data", "length": str(1 << 50)}, {"location": "data", "offset": "8"}, {"offset": "0"},
    {"location": "data", "__class__": "x"}, {"location": "data", "offset": "9" * 5000},
]  # fmt: skip


@pytest.mark.parametrize("entries", ENTRIES, ids=str)
def test_external_data_is_as_long_as_its_tensor(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0" * 16)
    (tmp_path / "x").write_bytes(model(tensor(rest=external(**entries))))
    refused(tmp_path / "x", safepoint.CorruptionError)


def test_missing_data_and_a_fifo_are_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(model(tensor(rest=external(location="data"))))
    refused(tmp_path / "x", safepoint.NotFoundError, "missing")
    os.mkfifo(tmp_path / "data")
    refused(tmp_path / "x", safepoint.NotFoundError)


FILES = {
    "a shape that lies": model(tensor((1 << 40,))),
    "a shape beyond 2**64": model(tensor((1 << 33, 1 << 33))),
    "a negative size": model(tensor((-4,))),
    "70 axes": model(tensor((1,) * 70)),
    "no data": model(tensor(rest=b"")),
    "data twice": model(tensor(rest=field(9, b"\0" * 16) + field(4, b"\0" * 16))),
    "a few numbers for many": model(tensor((1 << 40,), 7, field(7, b"\1\2\3\4"))),
    "numbers that are too few": model(tensor((4,), 7, field(7, b"\x80\x80\x80\1"))),
    "a number of 8 bytes for one of 4": model(tensor((1,), rest=varint(4 << 3 | 1) + b"\x7f" * 8)),
    "a number of any size for one of 4": model(tensor((1,), rest=field(4, 1 << 40))),
    "a number of 4 bytes for one of 8": model(tensor((1,), 11, varint(10 << 3 | 5) + b"\0" * 4)),
    "complex numbers as whole ones": model(tensor((1,), 15, field(5, b"\1\1"))),
    "half a complex number": model(tensor((1,), 14, field(4, b"\0" * 12))),
    "whole numbers as fractions": model(tensor((1,), 7, field(10, b"\0" * 8))),
    "raw data twice": model(tensor((1,), 2, field(9, b"\1") + field(9, b"\1"))),
    "numbers in too many bytes": model(tensor((1,), rest=field(4, b"\0" * 5))),
    "one name twice": model(tensor(), tensor()),
    "an unknown type": model(tensor(kind=77)),
    "segments": model(tensor(rest=field(3, field(1, 0)) + field(9, b"\0" * 16))),
    "a message outside": model(tensor())[:-20],
    "a number for a message": field(1, 10) + field(2, b"t") + field(7, field(5, 3)),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_hostile_model_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", (safepoint.CorruptionError, safepoint.UnsupportedError))


LISTED = tensor((2,), rest=(varint(4 << 3 | 5) + b"\0" * 4) * 2, name=b"listed")
PACKED = tensor((2,), 11, field(10, b"\0" * 16), name=b"packed")


def test_the_model_that_the_attacks_are_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0" * 16)
    beside = tensor(name=b"e", rest=external(location="data", offset="0", length="16"))
    (tmp_path / "x").write_bytes(model(tensor(), LISTED, PACKED, beside))
    read_all(tmp_path / "x")
