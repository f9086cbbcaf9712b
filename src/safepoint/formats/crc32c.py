"""CRC-32C (Castagnoli) over arrays, without a compiled library: many stretches side by side, then joined.

A CRC is linear: the remainder of `A` then `B` is that of `A`, moved on by the length of `B`, xor that of `B`. So NumPy
runs one table step over thousands of stretches at once. Source: RFC 3720, appendix B.4; for masks LevelDB's `crc32c.h`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_STRETCH = 512
_PIECE_BYTES = 8 << 20
_MASK_DELTA = 0xA282EAD8

Words = NDArray[np.uint32]


def masked_crc32c(data: NDArray[np.uint8]) -> int:
    """The CRC as LevelDB and TensorFlow keep it: rotated and shifted, so that it can stand among what it checks."""
    return mask(crc32c(data))


def mask(crc: int) -> int:
    """A CRC as they keep it."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: NDArray[np.uint8], before: int = 0) -> int:
    """The CRC of `uint8[n]`, or of what had the CRC `before` and then this."""
    crc = before ^ 0xFFFFFFFF
    for start in range(0, len(data), _PIECE_BYTES):
        crc = _update(crc, data[start : start + _PIECE_BYTES])
    return crc ^ 0xFFFFFFFF


def _update(crc: int, data: NDArray[np.uint8]) -> int:
    count = len(data) // _STRETCH
    whole = count * _STRETCH
    if count:
        columns = np.ascontiguousarray(data[:whole].reshape(count, _STRETCH).view("<u2").T)
        found = np.zeros(count, np.uint32)
        found[0] = crc  # what came before goes into the first stretch
        table = _table16()
        for column in columns:
            found = table[(found ^ column) & 0xFFFF] ^ (found >> np.uint32(16))
        crc = _joined(found, _STRETCH)
    table8 = _table8()
    for byte in data[whole:].tolist():
        crc = int(table8[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc


def _joined(parts: Words, length: int) -> int:
    """The remainder of stretches of equal length, one behind the other."""
    while len(parts) > 1:
        if len(parts) % 2:  # an empty remainder in front changes nothing
            parts = np.concatenate([np.zeros(1, np.uint32), parts])
        parts = _moved(parts[::2], length) ^ parts[1::2]
        length *= 2
    return int(parts[0])


def _moved(parts: Words, length: int) -> Words:
    """Each remainder after `length` zero bytes."""
    tables = _shift(length)
    low = tables[0][parts & 0xFF] ^ tables[1][(parts >> np.uint32(8)) & 0xFF]
    found: Words = low ^ tables[2][(parts >> np.uint32(16)) & 0xFF] ^ tables[3][parts >> np.uint32(24)]
    return found


@cache
def _shift(length: int) -> list[Words]:
    """For each byte of a remainder, what `length` zero bytes make of its 256 values; lengths double."""
    if length == 1:
        table = _table8()
        values = np.arange(256, dtype=np.uint32)
        return [table[(v := values << np.uint32(8 * i)) & 0xFF] ^ (v >> np.uint32(8)) for i in range(4)]
    half = length // 2
    values = np.arange(256, dtype=np.uint32)
    return [_moved(_moved(values << np.uint32(8 * i), half), half) for i in range(4)]


@cache
def _table8() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table.astype(np.uint32)


@cache
def _table16() -> Words:
    """What two bytes make of a remainder at once."""
    table = _table8()
    values = np.arange(1 << 16, dtype=np.uint32)
    once = table[values & 0xFF] ^ (values >> np.uint32(8))
    twice: Words = table[once & 0xFF] ^ (once >> np.uint32(8))
    return twice
