"""Tensors as they are stored: blocks, where they are and what they must be; which of them a save may use again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, final

import msgspec

from safepoint.codec import BLOCK_BYTES, cut
from safepoint.errors import CorruptionError, NotFoundError
from safepoint.limits import MAX_DIMENSION, MAX_RANK
from safepoint.tree import TensorSpec

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from the saving or loading thread."""


# msgspec's structs are made ten times faster than dataclasses; a state may have hundreds of thousands of blocks.
@final
class Block(msgspec.Struct, frozen=True, gc=False):
    """One block: in which pack, where in it, and what it must be."""

    pack: str
    offset: int
    length: int
    digest: str
    checksum: str


@final
class Stored(msgspec.Struct, frozen=True, gc=False):
    """A tensor as it is stored: its spec and its blocks in order."""

    name: str
    spec: TensorSpec
    blocks: tuple[Block, ...]


@final
@dataclass(frozen=True, slots=True)
class KnownBlocks:
    """Blocks that committed snapshots have, and may be used again.

    Attributes:
        by_place: (name of the tensor, index of the block) → block.
        by_checksum: checksum → a block with it; the digest decides.
        pack_bytes: pack → its size. A pack is used again only while at least a quarter of it is needed: a few
            constant megabytes must not pin gigabytes.
        chosen: told which blocks a save found unchanged, some at a time, in the thread that saves.
    """

    by_place: Mapping[tuple[str, int], Block]
    by_checksum: Mapping[str, Block]
    pack_bytes: Mapping[str, int]
    chosen: Callable[[Collection[Block]], None] | None = None

    @staticmethod
    def of(
        stored: Iterable[Stored],
        pack_bytes: Mapping[str, int],
        *,
        without: Container[tuple[str, int, int]] = (),
        chosen: Callable[[Collection[Block]], None] | None = None,
    ) -> KnownBlocks:
        """The blocks of some tensors that are in these packs, but for those at (pack, offset, length) in `without`."""
        by_place: dict[tuple[str, int], Block] = {}
        by_checksum: dict[str, Block] = {}
        for tensor in stored:
            for index, block in enumerate(tensor.blocks):
                if block.pack in pack_bytes and (block.pack, block.offset, block.length) not in without:
                    by_place[tensor.name, index] = block
                    by_checksum.setdefault(block.checksum, block)
        return KnownBlocks(by_place, by_checksum, pack_bytes, chosen)

    def find(self, name: str, index: int, checksum: str) -> Block | None:
        """The block that may hold these bytes, the one in the same place first: packs stay in use as a whole."""
        block = self.by_place.get((name, index))
        return block if block is not None and block.checksum == checksum else self.by_checksum.get(checksum)

    def worth_using(self, candidates: Iterable[Block]) -> frozenset[str]:
        """The packs of which these candidates use at least a quarter."""
        used: dict[str, dict[int, int]] = {}
        for block in candidates:
            used.setdefault(block.pack, {})[block.offset] = block.length
        return frozenset(pack for pack, parts in used.items() if 4 * sum(parts.values()) >= self.pack_bytes[pack])


def parse_spec(shape: Sequence[int], dtype: str, *, name: str, file: str) -> TensorSpec:
    """The spec that a file announces.

    Raises:
        CorruptionError: no array could have that shape.
        UnsupportedError: the dtype is not known to this version.
    """
    spec = _spec(tuple(shape), dtype)
    if spec is None:
        raise CorruptionError(
            f"{file} is damaged: {name} has an impossible shape",
            file=file,
            name=name,
            expected=f"at most {MAX_RANK} sizes from 0 to 2**48",
            found=f"{len(shape)} sizes",
        )
    return spec


@lru_cache(1024)  # most shapes of a model come again and again
def _spec(shape: tuple[int, ...], dtype: str) -> TensorSpec | None:
    if len(shape) > MAX_RANK or max(shape, default=0) > MAX_DIMENSION or min(shape, default=0) < 0:
        return None
    return TensorSpec(shape, dtype)


def check_blocks(stored: Stored, pack_bytes: Mapping[str, int], *, file: str) -> Stored:
    """`stored`, if its blocks are what a tensor of that size is cut into, each inside its pack.

    Raises:
        CorruptionError: they are not.
    """
    num_bytes, blocks = stored.spec.num_bytes, stored.blocks
    if len(blocks) == 1:  # nearly always, and quick
        (block,) = blocks
        end = block.offset + num_bytes
        fits = block.length == num_bytes <= BLOCK_BYTES and 0 <= block.offset <= end <= pack_bytes.get(block.pack, -1)
    else:
        fits = len(blocks) == -(-num_bytes // BLOCK_BYTES) and all(
            block.length == length and block.offset >= 0 and block.offset + length <= pack_bytes.get(block.pack, -1)
            for block, (_, length) in zip(blocks, cut(num_bytes), strict=False)
        )
    if not fits:
        raise CorruptionError(
            f"{file} is damaged: the blocks of {stored.name} do not make it up",
            file=file,
            name=stored.name,
            expected=f"{num_bytes} bytes in blocks of {BLOCK_BYTES}, inside their packs",
        )
    return stored


def check_extent(wanted: Iterable[Stored], size_of: Callable[[str], int], *, file_of: Callable[[str], str]) -> None:
    """Whether the files are long enough to hold what is wanted from them, before memory is taken for it.

    Raises:
        CorruptionError: a file is missing or cut short; names it, the tensor and the bytes.
    """
    sizes: dict[str, int] = {}
    for stored in wanted:
        start = 0
        for block in stored.blocks:
            if block.pack not in sizes:
                try:
                    sizes[block.pack] = size_of(file_of(block.pack))
                except NotFoundError:
                    sizes[block.pack] = -1
            size = sizes[block.pack]
            if block.offset + block.length > size:
                raise damaged(
                    block,
                    file=file_of(block.pack),
                    name=stored.name,
                    offset=start,
                    expected=f"at least {block.offset + block.length} bytes",
                    found="no such file" if size < 0 else f"{size} bytes",
                )
            start += block.length


def damaged(
    block: Block, *, file: str, name: str, offset: int, expected: str | None, found: str | None
) -> CorruptionError:
    """The error that names file, tensor and bytes of a damaged block, which starts at `offset` of the tensor."""
    span = (offset, offset + block.length)
    return CorruptionError(
        f"{name}, bytes {span[0]}-{span[1]}, is damaged in {file}",
        file=file,
        name=name,
        span=span,
        expected=expected,
        found=found,
    )


def with_rows(error: CorruptionError, spec: TensorSpec) -> CorruptionError:
    """The error about a tensor of this spec, told with the rows that the damaged bytes belong to."""
    if error.span is None or error.rows is not None or not spec.shape or not spec.num_bytes:
        return error
    row_bytes = max(1, spec.num_bytes // spec.shape[0])
    rows = (error.span[0] // row_bytes, -(-error.span[1] // row_bytes))
    where = f"bytes {error.span[0]}-{error.span[1]}"
    told = CorruptionError(
        error.message.replace(where, f"rows {rows[0]}-{rows[1]}, {where}", 1),
        file=error.file,
        name=error.name,
        span=error.span,
        rows=rows,
        expected=error.expected,
        found=error.found,
        hint=error.hint,
    )
    told.__cause__ = error.__cause__
    return told
