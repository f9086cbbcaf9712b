"""Writes TensorFlow's checkpoints (V2): a shard of bytes, and a sorted table that says where each tensor is in it.

There is no graph of objects in it: tensors are found by name (`tf.train.load_checkpoint`). Source:
`tensor_bundle.proto`, `util/tensor_bundle` of TensorFlow 2.21;
https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from safepoint.formats.crc32c import crc32c, mask, masked_crc32c
from safepoint.formats.sstable import MAGIC
from safepoint.formats.tf_checkpoint import DTYPES
from safepoint.formats.writing.content import Content, check_dtypes, refuse_name
from safepoint.formats.writing.output import Output
from safepoint.tree import TensorSpec

TITLE = "TensorFlow"
_KNOWN = {name: number for number, name in DTYPES.items()}
_BLOCK_BYTES = 256 << 10
_FOOTER_BYTES = 48
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def check(content: Content) -> None:
    """Whether everything has a place.

    Raises:
        UnsupportedError: a dtype or a name has none.
    """
    check_dtypes(content, _KNOWN, TITLE)
    for name in content.tensors:
        if not name or name.startswith("\0") or name == "_CHECKPOINTABLE_OBJECT_GRAPH":
            raise refuse_name(name, TITLE, "it means something else there")


def index_of(prefix: Path) -> Path:
    """The file that makes a checkpoint of what lies beside it."""
    return prefix.with_name(f"{prefix.name}.index")


def shard_of(prefix: Path) -> Path:
    """The file of the bytes."""
    return prefix.with_name(f"{prefix.name}.data-00000-of-00001")


def write_shard(content: Content, out: Output) -> Mapping[str, bytes]:
    """Write the bytes of all tensors; returns the entry of each for the table."""
    entries: dict[str, bytes] = {}
    for name, tensor in content.tensors.items():
        offset, crc = out.position, 0
        for piece in tensor.pieces():
            crc = crc32c(piece, crc)
            out.append(piece)
        entries[name] = _entry(tensor.spec, offset, mask(crc))
    return entries


def write_index(entries: Mapping[str, bytes], out: Output) -> None:
    """Write the table: blocks of keys in order, the place of each block, and where that stands."""
    header = _field(1, _VARINT, 1) + _field(3, _BYTES, _field(1, _VARINT, 1))  # one shard; the writer's version
    rows = [(b"", header), *sorted((name.encode(), entry) for name, entry in entries.items())]
    places: list[tuple[bytes, bytes]] = []
    block: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in rows:
        block.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_BYTES:
            places.append((key, _write_block(block, out)))
            block, size = [], 0
    if block:
        places.append((block[-1][0], _write_block(block, out)))
    filters = _write_block([], out)
    footer = filters + _write_block(places, out)
    out.append(footer.ljust(_FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC)


def _write_block(rows: Iterable[tuple[bytes, bytes]], out: Output) -> bytes:
    """Write one block, each key in full; returns its place, as the table has it."""
    data, starts = bytearray(), [0]
    for index, (key, value) in enumerate(rows):
        if index:
            starts.append(len(data))
        data += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    data += b"".join(start.to_bytes(4, "little") for start in [*starts, len(starts)])
    place = _varint(out.position) + _varint(len(data))
    data += b"\0"  # not compressed
    out.append(bytes(data) + masked_crc32c(np.frombuffer(bytes(data), np.uint8)).to_bytes(4, "little"))
    return place


def _entry(spec: TensorSpec, offset: int, crc: int) -> bytes:
    shape = b"".join(_field(2, _BYTES, _field(1, _VARINT, size)) for size in spec.shape)
    return (
        _field(1, _VARINT, _KNOWN[spec.dtype])
        + _field(2, _BYTES, shape)
        + _field(4, _VARINT, offset)
        + _field(5, _VARINT, spec.num_bytes)
        + _field(6, _FIXED32, crc)
    )


def _field(number: int, wire: int, value: int | bytes) -> bytes:
    tag = _varint(number << 3 | wire)
    if isinstance(value, bytes):
        return tag + _varint(len(value)) + value
    return tag + (value.to_bytes(4, "little") if wire == _FIXED32 else _varint(value))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
