"""Hostile GGUF files: counts, lengths and sizes that the file cannot hold."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.attacks.watching import read_all, refused

import safepoint


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(values: list[bytes], tensors: list[bytes], data: bytes = b"\0" * 64, *, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values + tensors)
    return head + b"\0" * (-len(head) % 32) + data


def tensor(name: bytes = b"w", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(sizes))
        + struct.pack(f"<{len(sizes)}Q", *sizes)
        + struct.pack("<IQ", kind, offset)
    )


def value(name: bytes, kind: int, content: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + content


ALIGNMENT = b"general.alignment"
NESTED = struct.pack("<IQ", 9, 1) * 1000
FILES = {
    "2**63 tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0) + b"\0" * 64,
    "2**63 values": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + b"\0" * 64,
    "a text of 2**63": gguf([struct.pack("<Q", 1 << 63)], []),
    "an array of 2**40 numbers": gguf([value(b"a", 9, struct.pack("<IQ", 4, 1 << 40))], []),
    "arrays 1000 deep": gguf([value(b"a", 9, NESTED)], []),
    "alignment 0": gguf([value(ALIGNMENT, 4, struct.pack("<I", 0))], [tensor()]),
    "alignment 3": gguf([value(ALIGNMENT, 4, struct.pack("<I", 3))], [tensor()]),
    "alignment as text": gguf([value(ALIGNMENT, 8, text(b"x"))], [tensor()]),
    "a key twice": gguf([value(b"a", 0, b"\1"), value(b"a", 0, b"\1")], []),
    "a tensor twice": gguf([], [tensor(), tensor(offset=32)]),
    "an overlap": gguf([], [tensor(sizes=(16,)), tensor(b"v", offset=32)]),
    "sizes beyond 2**64": gguf([], [tensor(sizes=(1 << 33, 1 << 33))]),
    "a tensor outside": gguf([], [tensor(offset=64)]),
    "an offset between": gguf([], [tensor(offset=4)]),
    "half a block": gguf([], [tensor(sizes=(33,), kind=8)]),
    "five axes": gguf([], [tensor(sizes=(1, 1, 1, 1, 1))]),
    "an unknown type": gguf([], [tensor(kind=99)]),
    "another version": gguf([], [], version=1),
    "another byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "cut short": gguf([], [tensor()])[:40],
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_hostile_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", (safepoint.CorruptionError, safepoint.UnsupportedError))


def test_the_file_that_the_attacks_are_made_from_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(
        gguf([value(ALIGNMENT, 4, struct.pack("<I", 32))], [tensor(), tensor(b"v", offset=32)])
    )
    read_all(tmp_path / "x")
