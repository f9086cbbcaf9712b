"""How much Zstandard frames unpack to at most, counted block by block without unpacking any. Source: RFC 8878, 3.1.1.

Invariant: a frame is counted wherever its magic number stands, so none can be hidden behind another.
"""

from __future__ import annotations

_MAGIC = bytes.fromhex("28b52ffd")
_MOST_IN_A_BLOCK = 128 << 10
_LEAST_COUNTED = 1 << 10  # so that walking ends early, whatever lies there
_RAW, _REPEATED, _COMPRESSED = range(3)


def most_unpacked(data: bytes, *, enough: int) -> int:
    """Bytes that all frames in `data` unpack to at most; counting stops once it is more than `enough`."""
    total, at = 0, data.find(_MAGIC)
    while at >= 0 and total <= enough:
        total += _most_of_frame(data, at, enough - total)
        at = data.find(_MAGIC, at + 1)
    return total


def _most_of_frame(data: bytes, at: int, enough: int) -> int:
    if at + 5 > len(data):
        return 0
    descriptor = data[at + 4]
    is_single = descriptor >> 5 & 1
    size_bytes = (is_single, 2, 4, 8)[descriptor >> 6]
    at += 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3] + size_bytes
    total = 0
    while at + 3 <= len(data) and total <= enough:
        header = int.from_bytes(data[at : at + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        if kind > _COMPRESSED:
            break
        total += max(_LEAST_COUNTED, _MOST_IN_A_BLOCK if kind == _COMPRESSED else size)
        at += 3 + (1 if kind == _REPEATED else size)
        if header & 1:
            break
    return total
