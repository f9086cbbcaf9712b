"""Hostile TensorFlow checkpoints: tables that lie, shards elsewhere, a state file that names another folder."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tests.attacks.test_onnx import field, varint
from tests.attacks.watching import read_all, refused

import safepoint
from safepoint.formats.crc32c import masked_crc32c


def crc(data: bytes) -> int:
    return masked_crc32c(np.frombuffer(data, np.uint8))


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
    body += struct.pack("<II", 0, 1) + b"\0"
    return body + struct.pack("<I", crc(body))


def table(entries: list[tuple[bytes, bytes]], *, data: bytes | None = None, handle: bytes | None = None) -> bytes:
    first = block(entries) if data is None else data
    place = varint(0) + varint(len(first) - 5) if handle is None else handle
    second = block([(b"~", place)])
    footer = varint(0) + varint(0) + varint(len(first)) + varint(len(second) - 5)
    return first + second + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = (b"", field(1, 1))
DATA = np.arange(4, dtype=np.float32).tobytes()


def entry(
    *,
    sizes: tuple[int, ...] = (4,),
    dtype: int = 1,
    shard: int = 0,
    offset: int = 0,
    length: int = 16,
    rest: bytes = b"",
) -> bytes:
    shape = field(2, b"".join(field(2, field(1, size)) for size in sizes))
    found = field(1, dtype) + shape + field(3, shard) + field(4, offset) + field(5, length)
    return found + varint(6 << 3 | 5) + struct.pack("<I", crc(DATA)) + rest


def written(folder: Path, index: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ck.index").write_bytes(index)
    (folder / "ck.data-00000-of-00001").write_bytes(DATA)
    return folder / "ck.index"


FLIPPED = bytearray(block([HEADER, (b"w", entry())]))
FLIPPED[3] ^= 1
BOX = field(7, field(1, field(2, 2)))
INDICES = {
    "a flipped bit": table([], data=bytes(FLIPPED)),
    "a compressed block": table(
        [], data=block([HEADER])[:-5] + b"\1" + struct.pack("<I", crc(block([HEADER])[:-5] + b"\1"))
    ),
    "a block outside": table([HEADER], handle=varint(1 << 40) + varint(100)),
    "a block of 2**63": table([HEADER], handle=varint(0) + varint(1 << 63)),
    "no header": table([(b"w", entry())]),
    "2**60 shards": table([(b"", field(1, 1 << 60)), (b"w", entry())]),
    "a shard too many": table([HEADER, (b"w", entry(shard=7))]),
    "a big-endian machine": table([(b"", field(1, 1) + field(2, 1))]),
    "a size that lies": table([HEADER, (b"w", entry(sizes=(1 << 40,)))]),
    "a shape beyond 2**64": table([HEADER, (b"w", entry(sizes=(1 << 33, 1 << 33)))]),
    "data outside": table([HEADER, (b"w", entry(offset=8))]),
    "an offset of 2**63": table([HEADER, (b"w", entry(offset=1 << 63))]),
    "another checksum": table([HEADER, (b"w", entry(rest=varint(6 << 3 | 5) + b"\0\0\0\0"))]),
    "keys out of order": table([HEADER, (b"w", entry()), (b"a", entry())]),
    "a part that is missing": table([HEADER, (b"w", entry(rest=BOX))]),
    "texts without end": table([HEADER, (b"w", entry(dtype=7, sizes=(1 << 40,)))]),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_hostile_index_is_refused(index: bytes, tmp_path: Path) -> None:
    refused(written(tmp_path, index), (safepoint.CorruptionError, safepoint.UnsupportedError))


@pytest.mark.parametrize("place", ["/etc/passwd", "../other/ck", "..", "sub/ck"])
def test_a_state_file_names_nothing_elsewhere(place: str, tmp_path: Path) -> None:
    written(tmp_path / "other", table([HEADER, (b"w", entry())]))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{place}"\n')
    refused(folder, safepoint.CorruptionError, "elsewhere")


def test_a_shard_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    index = written(tmp_path / "run", table([HEADER, (b"w", entry())]))
    (tmp_path / "run" / "ck.data-00000-of-00001").unlink()
    (tmp_path / "run" / "ck.data-00000-of-00001").symlink_to("../secret")
    refused(index, safepoint.CorruptionError, "a link")


def test_the_checkpoint_that_the_attacks_are_made_from_is_read(tmp_path: Path) -> None:
    read_all(written(tmp_path, table([HEADER, (b"w", entry())])))
