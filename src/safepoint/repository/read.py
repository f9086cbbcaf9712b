"""Reading tensors back: blocks in parallel, each verified before anyone sees it.

Invariant: memory that is returned holds verified bytes only; an error names the file, the tensor and the bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Literal, TypeAlias, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from safepoint.codec import BLOCK_BYTES, Buffer, Checksum, checksum, digest
from safepoint.errors import CorruptionError, NotFoundError, StoreError
from safepoint.repository.last_block import LastBlock
from safepoint.repository.stored import Block, Progress, Stored, damaged
from safepoint.repository.workers import Workers
from safepoint.store import aligned_buffer

Verify: TypeAlias = Literal["checksum", "full"]
"""What a read checks: the checksum at memory speed, or the digest as well."""

ReadInto: TypeAlias = Callable[[str, int, NDArray[np.uint8]], None]
"""(file, offset, destination): fills the destination from the file; see `Store.read_into`."""

Before: TypeAlias = Callable[[NDArray[np.uint8]], None]
"""Told of each part of a destination just before it is filled, in the thread that fills it; perhaps more than once."""

READ_THREADS = 3
_NOWHERE = np.empty(0, np.uint8)
_LARGE_BYTES = 1 << 20
_SMALL_BYTES = 16 << 10
_RUN_BYTES = 4 << 20  # neighbours smaller than a block are read together up to this size


@final
class Piece(msgspec.Struct, frozen=True, eq=False):
    """A block, and where it goes."""

    file: str
    block: Block
    name: str
    offset: int
    target: NDArray[np.uint8]


@final
class Run(msgspec.Struct, frozen=True, eq=False):
    """Blocks that lie side by side in one file."""

    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its blocks."""
        return sum(piece.block.length for piece in self.pieces)


def read_tensors(
    read_into: ReadInto,
    wanted: Mapping[str, tuple[Stored, NDArray[np.uint8]]],
    *,
    verify: Verify = "checksum",
    before: Before | None = None,
    progress: Progress | None = None,
    file_of: Callable[[str], str],
) -> None:
    """Fill each destination `uint8[num_bytes]` with a stored tensor's bytes, verified.

    Args:
        read_into: how bytes are read.
        wanted: name → (stored tensor, destination).
        verify: see `Verify`.
        before: see `Before`.
        progress: called with (bytes done, bytes in all) from this thread.
        file_of: pack id → file name.

    Raises:
        CorruptionError: a block is not what was written, or its pack is missing; names file, tensor and bytes.
        StoreError: the store refused.
    """
    total = sum(len(target) for _, target in wanted.values())
    targets = {name: target for name, (_, target) in wanted.items()}
    runs = list(runs_of([stored for stored, _ in wanted.values()], file_of, targets))
    done = 0

    def read(run: Run) -> int:
        if before is not None:
            for piece in run.pieces:
                before(piece.target)
        return read_run(read_into, run, verify)

    with Workers(READ_THREADS, "safepoint-read", num_bytes=total) as pool:
        for count in pool.map(read, runs):
            done += count
            if progress is not None:
                progress(done, total)


def read_range(
    read_into: ReadInto, stored: Stored, start: int, stop: int, *, file_of: Callable[[str], str], last: LastBlock
) -> NDArray[np.uint8]:
    """The bytes from `start` to `stop` of a stored tensor: the blocks that hold them are read and verified, no others.

    The caller must not write to them.

    Args:
        read_into: how bytes are read.
        stored: the tensor.
        start: first byte.
        stop: the byte after the last.
        file_of: pack id → file name.
        last: the block that was read last, and is not read again.

    Raises:
        CorruptionError: a block is not what was written; names file, tensor and bytes.
        StoreError: the store refused.
    """
    first = start // BLOCK_BYTES
    blocks = stored.blocks[first : -(-stop // BLOCK_BYTES)]
    begin = first * BLOCK_BYTES
    if len(blocks) == 1 and (held := last.find(blocks[0])) is not None:
        return held[start - begin : stop - begin]
    buffer = np.empty(sum(block.length for block in blocks), np.uint8)
    pieces = []
    for index, block in enumerate(blocks):
        target = buffer[index * BLOCK_BYTES : index * BLOCK_BYTES + block.length]
        pieces.append(Piece(file_of(block.pack), block, stored.name, begin + index * BLOCK_BYTES, target))
    if len(pieces) == 1:
        read_piece(read_into, pieces[0], "checksum")
    else:
        with Workers(READ_THREADS, "safepoint-read") as pool:
            for _ in pool.map(lambda piece: read_piece(read_into, piece, "checksum"), pieces):
                pass
    if stop - start < len(buffer) <= 2 * BLOCK_BYTES:  # a part: what follows is asked for next
        last.keep(blocks[-1], pieces[-1].target)
    return buffer[start - begin : stop - begin]


def staging(wanted: Mapping[str, Stored]) -> dict[str, NDArray[np.uint8]]:
    """One destination a tensor, each on a boundary of 64 bytes.

    Small ones share memory; a large one has its own, which goes when that tensor does.
    """
    large = {name for name, stored in wanted.items() if stored.spec.num_bytes >= _LARGE_BYTES}
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for name, stored in wanted.items():
        if name not in large:
            offsets[name] = (end, stored.spec.num_bytes)
            end += -(-stored.spec.num_bytes // 64) * 64
    try:
        arena = aligned_buffer(end)
        own = {name: aligned_buffer(wanted[name].spec.num_bytes) for name in large}
    except (OSError, ValueError, OverflowError) as error:
        refusal = error if isinstance(error, OSError) else OSError(errno.ENOMEM, str(error))
        size = sum(stored.spec.num_bytes for stored in wanted.values())
        raise StoreError(f"no memory for {size:,} bytes of tensors", error=refusal, hint="select= fewer") from error
    return own | {name: arena[start : start + size] for name, (start, size) in offsets.items()}


def runs_of(
    wanted: Iterable[Stored], file_of: Callable[[str], str], targets: Mapping[str, NDArray[np.uint8]] | None = None
) -> Iterator[Run]:
    """Blocks in the order in which they lie on disk, neighbours together.

    Args:
        wanted: tensors.
        file_of: pack id → file name.
        targets: name of the tensor → where it goes; nowhere yet by default.

    Raises:
        CorruptionError: the blocks of a tensor do not make it up.
    """
    by_pack: dict[str, list[Piece]] = {}
    file_of = cache(file_of)
    for stored in wanted:
        name = stored.name
        target = _NOWHERE if targets is None else targets[name]
        size = stored.spec.num_bytes if targets is None else len(target)
        offset = 0
        for block in stored.blocks:
            pack, length = block.pack, block.length
            part = target if length >= len(target) else target[offset : offset + length]
            by_pack.setdefault(pack, []).append(Piece(file_of(pack), block, name, offset, part))
            offset += length
        if offset != size:
            raise CorruptionError(
                f"{name}: its blocks do not make up the tensor",
                name=name,
                expected=f"{size} bytes",
                found=f"{offset} bytes",
            )
    for pack in sorted(by_pack, key=file_of):
        run: list[Piece] = []
        size = end = 0
        for piece in sorted(by_pack[pack], key=attrgetter("block.offset")):
            block = piece.block
            if run and (block.offset != end or size + block.length > _RUN_BYTES):
                yield Run(tuple(run))
                run, size = [], 0
            run.append(piece)
            size += block.length
            end = block.offset + block.length
        yield Run(tuple(run))


def read_run(read_into: ReadInto, run: Run, verify: Verify) -> int:
    """Read neighbours with one call and check each; returns their bytes.

    Raises:
        CorruptionError: a block is not what was written; names file, tensor and bytes.
        StoreError: it cannot be read.
    """
    pieces = run.pieces
    if len(pieces) == 1:
        read_piece(read_into, pieces[0], verify)
        return pieces[0].block.length
    size = sum(piece.block.length for piece in pieces)
    buffer = np.empty(size, np.uint8)
    try:
        read_into(pieces[0].file, pieces[0].block.offset, buffer)
    except (CorruptionError, NotFoundError):
        return sum(read_run(read_into, Run((piece,)), verify) for piece in pieces)  # which of them is it?
    data = buffer.data  # slices of a memoryview take a third of the time of an array's
    start = 0
    for piece in pieces:
        end = start + piece.block.length
        part = data[start:end]
        _check(piece, part, verify)
        if end - start < _SMALL_BYTES:
            piece.target.data[:] = part
        else:  # lets other threads run meanwhile
            piece.target[:] = buffer[start:end]
        start = end
    return size


def check_run(read_into: ReadInto, run: Run, buffer: NDArray[np.uint8]) -> int:
    """Read neighbours through a small buffer, keep nothing, and check each; returns their bytes.

    Raises:
        CorruptionError: a block is not what was written; names file, tensor and bytes.
        StoreError: it cannot be read.
    """
    size = run.num_bytes
    if len(run.pieces) > 1 and size > len(buffer):
        half = len(run.pieces) // 2
        parts = (Run(run.pieces[:half]), Run(run.pieces[half:]))
        return sum(check_run(read_into, part, buffer) for part in parts)
    first = run.pieces[0]
    if len(run.pieces) == 1:
        running = Checksum()
        for start in range(0, size, len(buffer)):
            part = buffer[: min(len(buffer), size - start)]
            with _naming(first):
                read_into(first.file, first.block.offset + start, part)
            running.update(part)
        _compare(first, running.hexdigest())
        return size
    try:
        read_into(first.file, first.block.offset, buffer[:size])
    except (CorruptionError, NotFoundError):
        return sum(check_run(read_into, Run((piece,)), buffer) for piece in run.pieces)  # which of them is it?
    data = buffer.data
    start = 0
    for piece in run.pieces:
        _compare(piece, checksum(data[start : start + piece.block.length]))
        start += piece.block.length
    return size


def read_piece(read_into: ReadInto, piece: Piece, verify: Verify) -> None:
    """Read one block to where it goes, and check it.

    Raises:
        CorruptionError: it is not what was written; names file, tensor and bytes.
        StoreError: it cannot be read.
    """
    with _naming(piece):
        read_into(piece.file, piece.block.offset, piece.target)
    _check(piece, piece.target, verify)


@contextmanager
def _naming(piece: Piece) -> Iterator[None]:
    """A file that is missing, too short or unreadable, told as damage of the tensor that needs it."""
    try:
        yield
    except (CorruptionError, NotFoundError) as error:
        missing = isinstance(error, NotFoundError)
        raise _damaged(
            piece, expected=piece.file if missing else error.expected, found="no such file" if missing else error.found
        ) from error


def _check(piece: Piece, data: Buffer, verify: Verify) -> None:
    _compare(piece, checksum(data))
    if verify == "full" and (found := digest(data)) != piece.block.digest:
        raise _damaged(piece, expected=f"digest {piece.block.digest}", found=found)


def _compare(piece: Piece, found: str) -> None:
    if found != piece.block.checksum:
        raise _damaged(piece, expected=f"checksum {piece.block.checksum}", found=found)


def _damaged(piece: Piece, *, expected: str | None, found: str | None) -> CorruptionError:
    return damaged(piece.block, file=piece.file, name=piece.name, offset=piece.offset, expected=expected, found=found)
