"""How much Zstandard frames unpack to at most, counted block by block without unpacking any. Source: RFC 8878, 3.1.1.

Invariant: a frame is counted wherever its magic number stands, so none can be hidden behind another; but not within one
that a reader of the whole takes for one.
"""

from __future__ import annotations

_MAGIC = bytes.fromhex("28b52ffd")
_MOST_IN_A_BLOCK = 128 << 10
_LEAST_COUNTED = 1 << 10  # so that walking ends early, whatever lies there
_RAW, _REPEATED, _COMPRESSED = range(3)


def most_unpacked(data: bytes, *, enough: int, nested: bool = False) -> int:
    """Bytes that all frames in `data` unpack to at most; counting stops once it is more than `enough`.

    Args:
        data: packed, from its beginning on.
        enough: bytes.
        nested: whether somebody may be told to read from any place in it, so that frames count within frames too.
    """
    total = at = 0
    while not nested and total <= enough and data.startswith(_MAGIC, at):
        size, at = _walk(data, at, enough - total)
        total += size
    at = data.find(_MAGIC, at)
    while at >= 0 and total <= enough:
        total += _walk(data, at, enough - total)[0]
        at = data.find(_MAGIC, at + 1)
    return total


def _walk(data: bytes, at: int, enough: int) -> tuple[int, int]:
    """What a frame unpacks to at most, and where it ends."""
    if at + 5 > len(data):
        return 0, len(data)
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
            at += 4 * (descriptor >> 2 & 1)  # a checksum
            break
    return total, at
