"""Verification: every byte of chosen snapshots read again and compared with its digest."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import digest
from safepoint.errors import CorruptionError, SafepointError
from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import pack_file
from safepoint.repository.moved import place_of
from safepoint.repository.places import told
from safepoint.repository.read import Piece, ReadInto, read_piece
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, Progress
from safepoint.repository.survey import Damage, Survey, check_header, damage_of, survey
from safepoint.repository.workers import Workers
from safepoint.store import aligned_buffer

_THREADS = 3
_BATCH_BYTES = 4 << 20


Use: TypeAlias = tuple[Block, str, int]
"""A block, the name of a tensor that has it, and the block's first byte in that tensor."""


@final
@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        whole: numbers of the snapshots whose every byte is right; empty where only a sample was read.
        damage: what is wrong; empty if nothing.
        num_bytes: that were read and compared (blocks that snapshots share are read once).
        sample: which part of all bytes that was meant to be; None for all.
    """

    whole: tuple[int, ...]
    damage: tuple[Damage, ...]
    num_bytes: int
    sample: float | None = None

    @property
    def ok(self) -> bool:
        return not self.damage


@final
@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that an examination found.

    Attributes:
        needed: what the snapshots need.
        documents: damage of documents.
        headers: packs of another length, or with another header, than they should have.
        blocks: damaged blocks, where they are now.
        num_bytes: that were read and compared.
    """

    needed: Survey
    documents: tuple[Damage, ...]
    headers: Mapping[PackDocument, Damage]
    blocks: Mapping[Block, Damage]
    num_bytes: int

    @property
    def damage(self) -> tuple[Damage, ...]:
        """All of it."""
        return (*self.documents, *self.headers.values(), *self.blocks.values())

    @property
    def broken(self) -> set[int]:
        """Numbers of the snapshots that something is wrong with."""
        return self.needed.broken.union(*(damage.snapshots for damage in self.damage))


def verify(
    documents: Documents,
    snapshots: Sequence[Snapshot],
    unreadable: Mapping[int, CorruptionError],
    progress: Progress | None,
    *,
    sample: float | None = None,
) -> Verification:
    """Check each block and each pack's header of `snapshots`, or a sample of the blocks; marks what is damaged."""
    found = examine(documents, snapshots, unreadable, progress, sample=sample)
    whole = () if sample is not None else tuple(s.number for s in snapshots if s.number not in found.broken)
    return Verification(whole, found.damage, found.num_bytes, sample)


def examine(
    documents: Documents,
    snapshots: Sequence[Snapshot],
    unreadable: Mapping[int, CorruptionError],
    progress: Progress | None,
    *,
    sample: float | None = None,
) -> Examination:
    """Check each block and each pack's header of `snapshots` once, however many share it; marks the damaged ones.

    Args:
        documents: of the repository.
        snapshots: to check.
        unreadable: snapshots whose own documents are damaged.
        progress: see `Progress`.
        sample: which part of the bytes to read, at random; all by default.
    """
    needed = survey(documents, snapshots)
    headers: dict[PackDocument, Damage] = {}
    for pack, numbers in needed.packs.items():
        try:
            check_header(documents.store, pack)
        except SafepointError as error:
            headers[pack] = damage_of(tuple(sorted(numbers)), error)
    uses = [(block, use.name, use.offset) for block, use in needed.blocks.items()]
    chosen = uses if sample is None else _sampled(uses, sample)
    wrong = check_all(chosen, documents.store.read_into, file_of=pack_file, progress=progress)
    blocks = {
        block: damage_of(tuple(sorted(needed.blocks[block].snapshots)), problem, needed.blocks[block].spec)
        for block, problem in wrong
    }
    damaged = {block for block, problem in wrong if isinstance(problem, CorruptionError)}
    told(partial(documents.places.mark_damaged, damaged))
    told(partial(documents.places.mark_right, [place_of(block) for block, _, _ in chosen if block not in blocks]))
    own = tuple(damage_of((number,), error) for number, error in unreadable.items())
    num_bytes = sum(block.length for block, _, _ in chosen)
    return Examination(needed, (*own, *needed.damage), headers, blocks, num_bytes)


def _sampled(uses: Sequence[Use], part: float) -> list[Use]:
    """Blocks drawn at random until they make up that part of all bytes."""
    wanted = part * sum(block.length for block, _, _ in uses)
    chosen: list[Use] = []
    for use in random.SystemRandom().sample(uses, len(uses)):
        if wanted <= 0:
            break
        chosen.append(use)
        wanted -= use[0].length
    return chosen


def check_all(
    uses: Iterable[Use],
    read_into: ReadInto,
    *,
    file_of: Callable[[str], str],
    progress: Progress | None = None,
    threads: int = _THREADS,
) -> list[tuple[Block, SafepointError]]:
    """Read blocks in parallel, each with the name of a tensor that has it and where in it, and compare digests.

    Returns:
        The damaged ones, and what is wrong with them.
    """
    ordered = sorted(uses, key=lambda use: (use[0].pack, use[0].offset))
    total = sum(block.length for block, _, _ in ordered)
    batches = list(_batches(ordered))
    most = max((_size(batch) for batch in batches), default=0)
    buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()  # the first touch takes longer than the reading
    for _ in range(threads):
        buffers.put(aligned_buffer(most))

    def check(batch: Sequence[Use]) -> list[tuple[Block, SafepointError]]:
        buffer = buffers.get()
        try:
            return check_in(batch, buffer)
        finally:
            buffers.put(buffer)

    def check_in(batch: Sequence[Use], buffer: NDArray[np.uint8]) -> list[tuple[Block, SafepointError]]:
        if len(batch) > 1 and _reads_as_one(batch, read_into, file_of, buffer[: _size(batch)]):
            return []
        wrong: list[tuple[Block, SafepointError]] = []
        for block, name, offset in batch:
            piece = Piece(file_of(block.pack), block, name, offset, buffer[: block.length])
            try:
                read_piece(read_into, piece, "full")
            except SafepointError as error:
                wrong.append((block, error))
        return wrong

    found: list[tuple[Block, SafepointError]] = []
    done = 0
    with Workers(threads, "safepoint-verify", num_bytes=total) as pool:
        for batch, wrong in zip(batches, pool.map(check, batches), strict=True):
            found += wrong
            done += _size(batch)
            if progress is not None:
                progress(done, total)
    return found


def _reads_as_one(
    batch: Sequence[Use], read_into: ReadInto, file_of: Callable[[str], str], buffer: NDArray[np.uint8]
) -> bool:
    """Read neighbours with one call; whether all of them are right. If not, one by one tells which is wrong."""
    start = batch[0][0].offset
    try:
        read_into(file_of(batch[0][0].pack), start, buffer)
    except SafepointError:
        return False
    return all(digest(buffer[b.offset - start : b.offset - start + b.length]) == b.digest for b, _, _ in batch)


def _size(batch: Sequence[Use]) -> int:
    return sum(block.length for block, _, _ in batch)


def _batches(uses: Sequence[Use]) -> Iterator[list[Use]]:
    """Work for a thread at a time: one large block, or small ones that lie side by side."""
    batch: list[Use] = []
    size = 0
    for use in uses:
        last = batch[-1][0] if batch else None
        joins = last is not None and (last.pack, last.offset + last.length) == (use[0].pack, use[0].offset)
        if batch and not (joins and size + use[0].length <= _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(use)
        size += use[0].length
    if batch:
        yield batch
