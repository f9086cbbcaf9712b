"""Where blocks are now: what `moved/` says, as pure functions over frozen data.

Invariant: a place that is followed has the same bytes as the one before, or none; digests in manifests stay the judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, final

from safepoint.errors import CorruptionError
from safepoint.limits import MAX_MOVES
from safepoint.repository.schema import MovedDocument, PackDocument
from safepoint.repository.stored import Block, Stored

Place: TypeAlias = tuple[str, int, int]
"""(pack, offset, length): where a block is."""


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """What all documents of `moved/` say together.

    Attributes:
        newest: pack → the document about it that holds.
        unreadable: file → what is wrong with a document that should hold.
        onward: place → where its block is instead.
        damaged: place → digest of the block that is no longer right there, and not written again yet.
        packs: id → pack that blocks were moved to.
    """

    newest: Mapping[str, MovedDocument] = field(default_factory=dict)
    unreadable: Mapping[str, CorruptionError] = field(default_factory=dict)
    onward: Mapping[Place, Place] = field(default_factory=dict)
    damaged: Mapping[Place, str] = field(default_factory=dict)
    packs: Mapping[str, PackDocument] = field(default_factory=dict)

    @staticmethod
    def of(newest: Mapping[str, MovedDocument], unreadable: Mapping[str, CorruptionError]) -> Moved:
        """The sum of the documents that hold."""
        onward: dict[Place, Place] = {}
        damaged: dict[Place, str] = {}
        packs: dict[str, PackDocument] = {}
        for pack, document in newest.items():
            packs.update((target.id, target) for target in document.packs)
            for offset, length, index, there in document.blocks:
                onward[pack, offset, length] = (document.packs[index].id, there, length)
            damaged.update(((pack, offset, length), digest) for offset, length, digest in document.damaged)
        return Moved(newest, unreadable, onward, damaged, packs)

    def way(self, place: Place) -> list[Place]:
        """A place and those that its block was moved to, the last one being where it is now."""
        way = [place]
        while (following := self.onward.get(way[-1])) is not None and len(way) <= MAX_MOVES:
            way.append(following)
        return way

    def locate(self, block: Block) -> Block:
        """The block where it is now."""
        if not self.onward:
            return block
        pack, offset, _ = self.way(place_of(block))[-1]
        return Block(pack, offset, block.length, block.digest, block.checksum)

    def located(self, stored: Iterable[Stored]) -> list[Stored]:
        """Tensors with their blocks where they are now."""
        if not self.onward:
            return list(stored)
        return [Stored(s.name, s.spec, tuple(map(self.locate, s.blocks))) for s in stored]

    def passed(self, blocks: Iterable[Block]) -> Iterator[str]:
        """Packs whose documents say where these blocks are now, or that they are damaged."""
        if self.newest:
            for block in blocks:
                yield from (pack for pack, _, _ in self.way(place_of(block)) if pack in self.newest)


def place_of(block: Block) -> Place:
    """Where a block is said to be."""
    return block.pack, block.offset, block.length
