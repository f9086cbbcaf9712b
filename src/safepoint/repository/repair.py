"""Repair: what is damaged is set aside, what the repository still holds elsewhere is used instead, the rest is told.

Invariant: nothing is deleted, no document is changed; a block is only said to be where its digest was found right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from safepoint.codec import cut, digest, parse_header
from safepoint.errors import CorruptionError, SafepointError
from safepoint.limits import MAX_HEADER_BYTES
from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import pack_file, pack_id
from safepoint.repository.moved import Moved, Place, place_of
from safepoint.repository.rewrite import read_where_it_is, rewrite
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, Progress
from safepoint.repository.survey import Damage
from safepoint.repository.verify import Examination, examine


@final
@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, and what it could not.

    Attributes:
        restored: damage of blocks that are right again, and of packs and documents that are no longer needed.
        lost: what is gone: blocks that nothing else holds, manifests, snapshots.
        whole: numbers of the snapshots whose every byte is right now.
        num_bytes: that were read and compared.
    """

    restored: tuple[Damage, ...]
    lost: tuple[Damage, ...]
    whole: tuple[int, ...]
    num_bytes: int

    @property
    def ok(self) -> bool:
        return not self.lost


@final
@dataclass(frozen=True, slots=True)
class _Copy:
    """A block that may be right elsewhere, and the pack that it is in."""

    block: Block
    pack: PackDocument


def repair(
    documents: Documents,
    snapshots: Mapping[int, Snapshot],
    unreadable: Mapping[int, CorruptionError],
    progress: Progress | None,
) -> Repair:
    """Examine every unpruned snapshot and put right what can be; the caller holds the shared lock.

    Args:
        documents: of the repository.
        snapshots: all that can be read, pruned ones included: their packs may still hold what is needed.
        unreadable: those that cannot.
        progress: see `Progress`.

    Raises:
        StoreError: the store refused; what was put right before stays so.
    """
    there = [snapshot for snapshot in snapshots.values() if not snapshot.pruned]
    found = examine(documents, there, unreadable, progress)
    copies = list(_copies(documents, snapshots.values(), {block.digest for block in found.blocks}))
    restored = _restore_blocks(documents, found, copies)
    lost_blocks = {block: damage for block, damage in found.blocks.items() if block not in restored}
    if lost_blocks:
        wanted = {block.digest for block in lost_blocks}
        restored |= _restore_blocks(documents, found, list(_stray_copies(documents, found, wanted)))
    _leave_packs(documents, found)
    for file in documents.places.moved().unreadable:
        documents.places.restate(file)
    lost = [damage for block, damage in found.blocks.items() if block not in restored]
    moved = {file: damage for damage in found.documents if (file := damage.file or "").startswith("moved/")}
    lost += [damage for damage in found.documents if damage.file not in moved]
    done = [found.blocks[block] for block in restored] + [*found.headers.values(), *moved.values()]
    broken = found.needed.broken.union(*(damage.snapshots for damage in lost))
    whole = tuple(snapshot.number for snapshot in there if snapshot.number not in broken)
    return Repair(tuple(done), tuple(lost), whole, found.num_bytes)


def _restore_blocks(documents: Documents, found: Examination, copies: Sequence[_Copy]) -> set[Block]:
    """Let damaged blocks be read where a copy of them is right; returns those."""
    places = documents.places
    damaged = {place_of(block) for block in found.blocks}
    by_digest: dict[tuple[str, int], list[_Copy]] = {}
    for copy in copies:
        by_digest.setdefault((copy.block.digest, copy.block.length), []).append(copy)
    restored: set[Block] = set()
    moves: dict[Place, Place] = {}
    packs: dict[str, PackDocument] = {}
    for block in found.blocks:
        for copy in by_digest.get((block.digest, block.length), []):
            if place_of(copy.block) not in damaged and _is_right(documents, copy.block):
                moves[place_of(block)] = place_of(copy.block)
                packs[copy.pack.id] = copy.pack
                restored.add(block)
                break
    if moves:
        places.move(moves, packs)
    return restored


def _is_right(documents: Documents, block: Block) -> bool:
    try:
        read_where_it_is(documents.places, block)
    except SafepointError:
        return False
    return True


def _copies(documents: Documents, snapshots: Iterable[Snapshot], wanted: set[str]) -> Iterator[_Copy]:
    """Blocks of those digests in any manifest that can be read, where they are, and where they were before."""
    if not wanted:
        return
    moved = documents.places.moved()
    for snapshot in snapshots:
        try:
            manifest = documents.manifest(snapshot.manifest, number=snapshot.number)
        except SafepointError:
            continue
        packs = {**moved.packs, **manifest.packs}
        for stored in manifest.stored.values():
            for block in stored.blocks:
                if block.digest in wanted:
                    yield from _along(moved, block, packs)


def _along(moved: Moved, block: Block, packs: Mapping[str, PackDocument]) -> Iterator[_Copy]:
    for pack, offset, length in moved.way(place_of(block)):
        if pack in packs:
            yield _Copy(Block(pack, offset, length, block.digest, block.checksum), packs[pack])


def _stray_copies(documents: Documents, found: Examination, wanted: set[str]) -> Iterator[_Copy]:
    """Blocks of those digests in packs that no readable manifest names."""
    known = {pack.id for pack in found.needed.packs}
    checksums = {block.digest: block.checksum for block in found.blocks}
    for name in map(pack_id, documents.store.list("packs")):
        if name is None or name in known:
            continue
        try:
            yield from _inside(documents, name, wanted, checksums)
        except SafepointError:
            continue


def _inside(documents: Documents, pack: str, wanted: set[str], checksums: Mapping[str, str]) -> Iterator[_Copy]:
    store, file = documents.store, pack_file(pack)
    size = store.size(file)
    prefix = np.empty(8, np.uint8)
    store.read_into(file, 0, prefix)
    length = int.from_bytes(prefix.tobytes(), "little")
    header = np.empty(min(length, MAX_HEADER_BYTES, size), np.uint8)
    store.read_into(file, 8, header)
    parsed = parse_header(prefix.tobytes(), header.tobytes(), file=file, file_bytes=size)
    document = PackDocument(pack, size, parsed.data_start, digest(prefix.tobytes() + header.tobytes()))
    for entry in parsed.entries:
        for start, part in cut(entry.stop - entry.start):
            data = np.empty(part, np.uint8)
            offset = parsed.data_start + entry.start + start
            store.read_into(file, offset, data)
            if (name := digest(data)) in wanted:
                yield _Copy(Block(pack, offset, part, name, checksums[name]), document)


def _leave_packs(documents: Documents, found: Examination) -> None:
    """Write what is right in packs with a damaged header, or a wrong length, to a new one."""
    left = {pack.id for pack in found.headers}
    blocks = {
        place_of(block): block for block in found.needed.blocks if block.pack in left and block not in found.blocks
    }
    rewrite(documents.places, blocks, partial(read_where_it_is, documents.places))
