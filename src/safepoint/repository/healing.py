"""Healing: what saves rely on is read back in turn, what is damaged is written again, older snapshots get it too.

Invariant: a lineage reads every block that it uses again back from the disk, and compares its digest, at least once in
`CYCLE` numbers; so no block is relied on for more than 20 snapshots unproven.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from types import TracebackType
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import cut, digest
from safepoint.errors import CorruptionError, SafepointError
from safepoint.limits import MAX_BLOCK_BYTES
from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import pack_file
from safepoint.repository.moved import Place, place_of
from safepoint.repository.places import Places
from safepoint.repository.rewrite import rewrite
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, Stored
from safepoint.repository.verify import check_all, examine
from safepoint.repository.workers import Workers
from safepoint.tree import Tensor

CYCLE = 16
"""Every block is due once in so many numbers of snapshots; 16 MiB of a pack that lie together are due together."""


def due_after(documents: Documents, parent: int | None) -> frozenset[int]:
    """Which turns of the cycle a child of this snapshot takes: the numbers after its grandparent, up to the parent.

    So the turns of a lineage follow each other without a gap, whatever other lineages do in between.
    """
    if parent is None:
        return frozenset()
    try:
        before = documents.snapshot(parent).parent
    except SafepointError:  # nothing of it will be used again either
        return frozenset()
    start = parent - 1 if before is None else before
    return frozenset(number % CYCLE for number in range(max(start + 1, parent - CYCLE + 1), parent + 1))


def turn_of(block: Block) -> int:
    """Which turn of the cycle a block is due at."""
    return (int(block.pack[:8], 16) + block.offset // MAX_BLOCK_BYTES) % CYCLE


@final
class Recheck:
    """Reads blocks that are used again, and due, back from the disk while a save looks for others and writes."""

    def __init__(self, places: Places, due: AbstractSet[int]) -> None:
        self._places = places
        self._due = due
        self._seen: set[Place] = set()
        self._pool: Workers | None = None
        self._running: list[Future[list[Block]]] = []

    def begin(self, blocks: Collection[Block]) -> None:
        """Start reading those of `blocks` that are due; called with some at a time."""
        chosen = {
            place: block
            for block in blocks
            if turn_of(block) in self._due and (place := place_of(block)) not in self._seen
        }
        if not chosen:
            return
        self._seen.update(chosen)
        if self._pool is None:
            num_bytes = sum(block.length for block in blocks)
            self._pool = Workers(1, "safepoint-recheck", num_bytes=num_bytes)
        self._running.append(self._pool.submit(self._read, list(chosen.values())))

    def damaged(self) -> list[Block]:
        """What was found damaged; waits for the end."""
        return [block for future in self._running for block in future.result()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.__exit__(kind, error, traceback)

    def _read(self, blocks: list[Block]) -> list[Block]:
        uses = [(block, "", 0) for block in blocks]
        wrong = check_all(uses, self._places.store.read_into, file_of=pack_file, threads=1)
        return [block for block, error in wrong if isinstance(error, CorruptionError)]


def heal(places: Places, stored: Iterable[Stored], packs: Mapping[str, PackDocument]) -> None:
    """Let older snapshots find their damaged blocks among those of a snapshot that was just committed."""
    moved = places.moved()
    if not moved.damaged:
        return
    right = {
        (block.digest, block.length): place_of(block)
        for tensor in stored
        for block in tensor.blocks
        if place_of(block) not in moved.damaged
    }
    moves: dict[Place, Place] = {}
    for place, name in moved.damaged.items():
        new = right.get((name, place[2]))
        if new is not None:
            moves[place] = new
    places.move(moves, packs)


def heal_from(documents: Documents, snapshot: Snapshot, tensors: Iterable[Tensor]) -> bool:
    """Write damaged blocks of a snapshot again from memory that happens to hold them; the caller has the shared lock.

    Returns:
        Whether no block of it is damaged any more.

    Raises:
        StoreError: the store refused.
    """
    damaged = examine(documents, [snapshot], {}, None).blocks
    lengths = {block.length for block in damaged}
    held: dict[str, NDArray[np.uint8]] = {}
    wanted = {block.digest for block in damaged}
    for tensor in tensors:
        if {length for _, length in cut(tensor.spec.num_bytes)} & lengths:
            data = tensor.read()
            pieces = [data[offset : offset + length] for offset, length in cut(len(data)) if length in lengths]
            held.update((name, piece) for piece in pieces if (name := digest(piece)) in wanted)
    blocks = {place_of(block): block for block in damaged if block.digest in held}
    rewrite(documents.places, blocks, lambda block: held[block.digest])
    return len(blocks) == len(damaged) > 0
