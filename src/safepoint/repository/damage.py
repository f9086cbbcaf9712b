"""What becomes of damage that a load meets: marked, so that no save relies on it, and told with everything known.

Invariant: nothing here hides an error; a block that was moved meanwhile is read again where it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError
from safepoint.repository.places import Places, told
from safepoint.repository.stored import Block, Stored, with_rows
from safepoint.tree import Tensor

T = TypeVar("T")


def where_it_is(places: Places, wanted: Collection[Stored], read: Callable[[list[Stored]], T]) -> T:
    """Read tensors where their blocks are now.

    Raises:
        CorruptionError: a block is damaged, and marked as such where the store can be written.
    """
    while True:
        moved = places.moved()
        found = moved.located(wanted)
        try:
            return read(found)
        except CorruptionError as error:
            now = places.moved()
            if now is not moved and now.located(wanted) != found:
                continue  # moved by a compaction or healed, between looking and reading
            raise damage_found(places, found, error) from error


def reading(places: Places, wanted: Collection[Stored], tensor: Tensor) -> Callable[[], NDArray[np.uint8]]:
    """How one of the tensors `wanted` is read, so that damage of any of them is marked."""

    def read() -> NDArray[np.uint8]:
        try:
            return tensor.read()
        except CorruptionError as error:
            raise damage_found(places, wanted, error) from error

    return read


def damage_found(places: Places, read: Iterable[Stored], error: CorruptionError) -> CorruptionError:
    """Mark the block that an error is about; returns the error to raise, with the rows of the tensor."""
    for stored in read:
        if stored.name == error.name:
            block = _block_at(stored, error)
            told(partial(places.mark_damaged, [] if block is None else [block]))
            return with_rows(error, stored.spec)
    return error


def _block_at(stored: Stored, error: CorruptionError) -> Block | None:
    offset = 0
    for block in stored.blocks:
        if error.span is not None and offset == error.span[0]:
            return block
        offset += block.length
    return None
