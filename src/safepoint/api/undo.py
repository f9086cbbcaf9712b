"""Undo: what live memory held before it was read into, to be put back if anything after that goes wrong.

Invariant: `put_back` leaves every byte as it was before the first part was told to `keep`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import final

import numpy as np
from numpy.typing import NDArray

from safepoint.store import aligned_buffer
from safepoint.tree import address_of

Memory = NDArray[np.uint8]


@final
class Undo:
    """Keeps parts of live memory, each once, copied in the thread that is about to fill it.

    Args:
        num_bytes: of all parts together.
    """

    def __init__(self, num_bytes: int) -> None:
        self._kept = aligned_buffer(num_bytes)  # its pages come when they are written to, beside the disk
        self._used = 0
        self._parts: dict[tuple[int, int], tuple[Memory, Memory]] = {}
        self._mutex = threading.Lock()

    def keep(self, part: Memory) -> None:
        """Keep what a part holds now, unless it is kept already."""
        address = address_of(part)
        with self._mutex:
            if address is None or address in self._parts:
                return
            copy = self._kept[self._used : self._used + len(part)]
            self._used += len(part)
            self._parts[address] = (part, copy)
        np.copyto(copy, part)

    def put_back(self) -> None:
        """Give every part what it held. Nobody may be filling them any more."""
        for part, copy in self._parts.values():
            np.copyto(part, copy)


def apart(memory: Collection[Memory]) -> bool:
    """Whether no two pieces of live memory share a byte."""
    end = 0
    for start, size in sorted(address for part in memory if (address := address_of(part)) is not None):
        if start < end:
            return False
        end = start + size
    return True
