"""Blocks: a tensor's bytes cut every 16 MiB, each with a digest (identity) and a checksum (the fast check on load)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, final

import blake3
import numpy as np
import xxhash
from numpy.typing import NDArray

from safepoint.limits import MAX_BLOCK_BYTES

BLOCK_BYTES = MAX_BLOCK_BYTES
"""Unit of hashing, deduplication, parallel I/O and ranged reads: large enough to run at the speed of the disk,
small enough that four in flight fit in the memory a save may add."""

DIGEST_LENGTH = 64
"""Lower-case hexadecimal BLAKE3-256. Source: BLAKE3 specification, https://github.com/BLAKE3-team/BLAKE3-specs."""

CHECKSUM_LENGTH = 16
"""Lower-case hexadecimal XXH3-64, seed 0, big-endian. Source: https://github.com/Cyan4973/xxHash."""

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]


def cut(num_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each block of a tensor of `num_bytes`; an empty tensor has none."""
    for offset in range(0, num_bytes, BLOCK_BYTES):
        yield offset, min(BLOCK_BYTES, num_bytes - offset)


def digest(data: Buffer) -> str:
    """The identity of some bytes; releases the GIL."""
    return blake3.blake3(data).hexdigest()  # type: ignore[arg-type]  # arrays are buffers too


def checksum(data: Buffer) -> str:
    """The fast check of some bytes; releases the GIL for large ones."""
    return xxhash.xxh3_64_hexdigest(data)  # type: ignore[arg-type]


@final
class Checksum:
    """The fast check of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._running = xxhash.xxh3_64()

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._running.update(data)  # type: ignore[arg-type]

    def hexdigest(self) -> str:
        """The checksum of all that came."""
        return self._running.hexdigest()
