"""Compaction: packs of which most is dead are written again without it, so that their space comes back.

Order: live blocks to a new pack, durable → `moved/` says where they are, durable → collection, under the exclusive
lock, deletes the old packs when no reader or writer is left that could know them. docs/design/0003 argues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.moved import place_of
from safepoint.repository.rewrite import read_where_it_is, rewrite
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, Progress
from safepoint.repository.survey import Survey, survey

_PACK_BYTES = 1 << 30  # at least so much room is needed beside what is there


@final
@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did.

    Attributes:
        packs: that were written again.
        moved_bytes: of blocks that are elsewhere now.
        freed_bytes: that came back; None if the repository was in use: the next `collect` frees them.
    """

    packs: int
    moved_bytes: int
    freed_bytes: int | None


def move_live_blocks(
    documents: Documents, snapshots: Sequence[Snapshot], progress: Progress | None = None
) -> tuple[int, int]:
    """Write what is alive in packs of which most is dead to new ones; the caller holds the shared lock.

    Returns:
        How many packs need nobody any more, and the bytes that were moved.

    Raises:
        CorruptionError: a document or a live block is damaged; what was moved before stays moved.
    """
    needed = survey(documents, snapshots, strict=True)
    sparse = dict(_sparse(needed))
    total, done = sum(block.length for blocks in sparse.values() for block in blocks), 0
    for batch in _batches(list(sparse.values())):
        blocks = {place_of(block): block for block in batch}
        rewrite(documents.places, blocks, partial(read_where_it_is, documents.places))
        done += sum(block.length for block in batch)
        if progress is not None:
            progress(done, total)
    return len(sparse), total


def _sparse(needed: Survey) -> Iterator[tuple[PackDocument, list[Block]]]:
    """Packs of which less than half is alive, and what is."""
    live: dict[str, dict[int, Block]] = {}
    for block in needed.blocks:
        live.setdefault(block.pack, {})[block.offset] = block
    for pack in needed.packs:
        blocks = live[pack.id]
        if 2 * sum(block.length for block in blocks.values()) < pack.num_bytes - pack.header_bytes:
            yield pack, sorted(blocks.values(), key=lambda block: block.offset)


def _batches(packs: Sequence[list[Block]]) -> Iterator[list[Block]]:
    """What goes into one new pack."""
    batch: list[Block] = []
    for blocks in packs:
        batch += blocks
        if sum(block.length for block in batch) >= _PACK_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch
