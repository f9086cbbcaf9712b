"""Short texts that are attributes of objects in HDF5 files, read without the library.

The library keeps texts of any length in heaps, and over some damaged heaps it never ends (a free object of no size).
Invariant: each step moves on, inside the file. Source: HDF5 File Format Specification 3.0, IV.A.1.a (version 1, which
Keras and h5py write by default), IV.A.2.m and III.E.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias

from safepoint.errors import CorruptionError

Read: TypeAlias = Callable[[int, int], bytes]

_HEADER = struct.Struct("<BxHII4x")
_MESSAGE = struct.Struct("<HHB3x")
_BLOCK = struct.Struct("<QQ")
_ATTRIBUTE = struct.Struct("<BxHHH")
_PLACE = struct.Struct("<IQI")
_HEAP = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_CONTINUED, _ATTRIBUTES = 0x10, 0x0C
_FIXED, _ANY_LENGTH = 3, 9
_MOST_BLOCKS = 1000
_MOST_BYTES = 64 << 20


def texts_of(read: Read, num_bytes: int, address: int, names: Collection[str], *, path: str) -> dict[str, str]:
    """Those of an object's attributes called `names` that are single texts; none of a kind that is not known here.

    Args:
        read: (offset, length) → bytes of the file.
        num_bytes: of the file.
        address: of the object's header.
        names: of attributes.
        path: of the file, for errors.

    Raises:
        CorruptionError: something lies outside of the file, or contradicts itself.
    """

    def take(offset: int, length: int) -> bytes:
        if offset < 0 or length > _MOST_BYTES or offset + length > num_bytes:
            raise _damaged(path)
        return read(offset, length)

    found: dict[str, str] = {}
    for body in _attributes(take, address, path):
        known = _name_and_kind(body)
        if known is not None and known[0] in names:
            name, kind, data = known
            text = data if kind == _FIXED else _in_heap(take, data, path)
            found[name] = text.partition(b"\0")[0].decode("utf-8", "replace")
    return found


def _attributes(take: Read, address: int, path: str) -> Iterator[bytes]:
    """The bodies of an object's attribute messages."""
    version, _, _, size = _HEADER.unpack(take(address, _HEADER.size))
    if version != 1:
        return
    blocks = [(address + _HEADER.size, size)]
    for number, (start, length) in enumerate(blocks):  # grows meanwhile
        if number > _MOST_BLOCKS:
            raise _damaged(path)
        block = take(start, length)
        position = 0
        while position + _MESSAGE.size <= len(block):
            kind, size, flags = _MESSAGE.unpack_from(block, position)
            body = block[position + _MESSAGE.size : position + _MESSAGE.size + size]
            position += _MESSAGE.size + size
            if len(body) < size or (kind == _CONTINUED and size < _BLOCK.size):
                raise _damaged(path)
            if kind == _CONTINUED:
                blocks.append(_BLOCK.unpack_from(body))
            elif kind == _ATTRIBUTES and not flags & 2:  # 2: the message is elsewhere, which nobody writes
                yield body


def _name_and_kind(body: bytes) -> tuple[str, int, bytes] | None:
    """Name, kind of text and data of an attribute; None if it is none that is known."""
    if len(body) < _ATTRIBUTE.size:
        return None
    version, *sizes = _ATTRIBUTE.unpack_from(body)
    if version != 1:
        return None
    parts, position = [], _ATTRIBUTE.size
    for size in sizes:
        parts.append(body[position : position + size])
        position += -(-size // 8) * 8
    name, kind, space = parts
    if len(kind) < 8 or space[:2] != b"\1\0":  # of rank 0
        return None
    number, length = kind[0] & 15, int.from_bytes(kind[4:8], "little")
    if number == _FIXED:
        return name.rstrip(b"\0").decode("utf-8", "replace"), number, body[position : position + length]
    if number == _ANY_LENGTH and kind[1] & 15 == 1:
        return name.rstrip(b"\0").decode("utf-8", "replace"), number, body[position : position + _PLACE.size]
    return None


def _in_heap(take: Read, place: bytes, path: str) -> bytes:
    """The object of a heap that a place names."""
    if len(place) < _PLACE.size:
        raise _damaged(path)
    length, address, wanted = _PLACE.unpack(place)
    if length == 0:
        return b""
    signature, version, size = _HEAP.unpack(take(address, _HEAP.size))
    if signature != b"GCOL" or version != 1 or size > _MOST_BYTES:
        raise _damaged(path)
    heap = take(address, size)
    position = _HEAP.size
    while position + _OBJECT.size <= len(heap):
        index, _, stored = _OBJECT.unpack_from(heap, position)
        position += _OBJECT.size
        if index == 0:  # what is free comes last
            break
        if index == wanted and length <= stored <= len(heap) - position:
            return heap[position : position + length]
        position += -(-stored // 8) * 8
    raise _damaged(path)


def _damaged(path: str) -> CorruptionError:
    return CorruptionError(f"{path} is damaged: a text is not where it should be", file=path)
