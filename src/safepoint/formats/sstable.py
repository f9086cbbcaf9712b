"""Sorted tables of keys and values, as LevelDB and TensorFlow's checkpoint index have them.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md; TensorFlow's `core/lib/io/table`. Every block's
checksum is compared; a compressed block, which TensorFlow does not write, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.crc32c import masked_crc32c
from safepoint.formats.cursor import Cursor
from safepoint.formats.files import Readable

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_MAX_BLOCK_BYTES = 256 << 20
_MAX_ENTRIES = 5_000_000


def entries(file: Readable) -> Iterator[tuple[bytes, bytes]]:
    """Every (key, value) in order.

    Raises:
        CorruptionError: it is no such table, or damaged.
        UnsupportedError: its blocks are compressed.
    """
    if file.num_bytes < _FOOTER_BYTES:
        raise _wrong(file, "it is too short")
    footer = file.read(file.num_bytes - _FOOTER_BYTES, _FOOTER_BYTES)
    if footer[-8:] != MAGIC:
        raise _wrong(file, "it does not end like one")
    cursor = _cursor(footer[:40], file)
    cursor.varint(), cursor.varint()  # the table of filters, which nobody has
    seen = 0
    last = b""
    for _, handle in _block(file, cursor.varint(), cursor.varint()):
        place = _cursor(handle, file)
        for key, value in _block(file, place.varint(), place.varint()):
            seen += 1
            if seen > _MAX_ENTRIES or (seen > 1 and key <= last):
                raise _wrong(file, "its keys are not in order, or too many")
            last = key
            yield key, value


def _block(file: Readable, start: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    if length > _MAX_BLOCK_BYTES or start + length + _TRAILER_BYTES > file.num_bytes - _FOOTER_BYTES or length < 4:
        raise _wrong(file, "a block outside the file")
    data = file.read(start, length + _TRAILER_BYTES)
    if data[length]:
        raise UnsupportedError(f"{file.path} has compressed blocks", hint="write it without compression")
    if masked_crc32c(np.frombuffer(data, np.uint8, length + 1)) != int.from_bytes(data[length + 1 :], "little"):
        raise _wrong(file, "the checksum of a block differs")
    restarts = int.from_bytes(data[length - 4 : length], "little")
    stop = length - 4 - 4 * restarts
    if stop < 0:
        raise _wrong(file, "a block of restarts alone")
    cursor = _cursor(data[:stop], file)
    key = b""
    while cursor.position < stop:
        shared, rest, size = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key):
            raise _wrong(file, "a key that shares more than there is")
        key = key[:shared] + cursor.take(rest)
        yield key, cursor.take(size)


def _cursor(data: bytes, file: Readable) -> Cursor:
    return Cursor(lambda start, length: data[start : start + length], 0, len(data), file=file.path)


def _wrong(file: Readable, what: str) -> CorruptionError:
    return CorruptionError(f"{file.path} is no sound table: {what}", file=file.path)
