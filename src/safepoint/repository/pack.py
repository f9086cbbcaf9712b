"""Writing packs: tensors to one safetensors file in a single pass, hashed while they are written.

A segment is a page-aligned buffer that takes whole blocks back to back. Workers hash a full segment's blocks *from the
buffer*, so that what is identified is what is written even if live memory changes under us, and write it with direct
I/O, while the caller's thread fills the next. The header comes last, into space reserved at the front.

Invariant: memory is `_SEGMENTS` buffers, whatever the size of the state.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import BLOCK_BYTES, build_header, checksum, cut, digest
from safepoint.repository.entries import EntryName, Metadata, entries_of, measure_header
from safepoint.repository.stored import Block, KnownBlocks, Progress, Stored
from safepoint.repository.workers import Workers
from safepoint.store import Sink, aligned_buffer
from safepoint.store.protocol import ALIGNMENT
from safepoint.tree import DTYPES, Tensor, address_of

__all__ = ["Block", "Progress", "Stored", "WrittenPack", "write_pack"]

_SEGMENTS = 5
_WORKERS = 3
_LEAST_SEGMENT_BYTES = 1 << 20
_SMALL_BYTES = 16 << 10  # copying fewer takes less time than asking for it: they are gathered, and copied together
_GATHERED_BYTES = 128 << 10
_BATCH_BYTES = 8 << 20
_MOST_BATCHES = 4  # tensors that must be copied to be read may be as many as the whole state


@final
@dataclass(frozen=True, slots=True)
class WrittenPack:
    """What was written, and where everything is.

    Attributes:
        stored: name → stored tensor.
        num_bytes: of the new file; 0 if none was needed.
        header_bytes: where its data starts.
        header_digest: of those first bytes.
    """

    stored: dict[str, Stored]
    num_bytes: int
    header_bytes: int
    header_digest: str


@final
class _Segment:
    """A buffer on its way to the disk: the last bytes of the segment before, then whole blocks."""

    __slots__ = ("blocks", "data", "file_offset", "fill", "view")

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.view = data.data
        self.file_offset = 0
        self.fill = 0
        self.blocks: list[tuple[int, int, int]] = []  # (key, start in the buffer, length)


def write_pack(
    open_sink: Callable[[], Sink],
    tensors: Mapping[str, Tensor],
    *,
    pack: str = "",
    known: KnownBlocks | None = None,
    entry_name: EntryName = lambda name: name,
    metadata: Metadata | None = None,
    progress: Progress | None = None,
) -> WrittenPack:
    """Write the blocks of `tensors` that are not known yet to one new safetensors file.

    Args:
        open_sink: opens the file; called only when there is something to write.
        tensors: name → tensor. Bytes are read on this thread, in order of falling item size, so that entries are
            aligned to their dtype without gaps.
        pack: what its blocks are said to be in.
        known: blocks that may hold the same bytes; one whose digest fits is referred to instead of written.
        entry_name: the key in the header of a tensor that the file holds whole.
        metadata: the header's `__metadata__`; called first with placeholders to measure it, then with the truth.
        progress: see `Progress`.

    Raises:
        StoreError: the store refused; nothing is visible.
    """
    writer = _PackWriter(open_sink, tensors, pack, entry_name, metadata, progress)
    try:
        with Workers(_WORKERS, "safepoint-write", num_bytes=writer.num_bytes) as pool:
            return writer.run(pool, known)
    finally:
        writer.close()


@final
class _PackWriter:
    def __init__(
        self,
        open_sink: Callable[[], Sink],
        tensors: Mapping[str, Tensor],
        pack: str,
        entry_name: EntryName,
        metadata: Metadata | None,
        progress: Progress | None,
    ) -> None:
        self._open_sink = open_sink
        self._tensors = tensors
        self._pack = pack
        self._entry_name = entry_name
        self._metadata = metadata
        self._progress = progress
        self._sizes = {name: tensor.spec.num_bytes for name, tensor in tensors.items()}
        self.num_bytes = sum(self._sizes.values())
        self._needed = 0  # bytes of blocks that this file is going to hold, as far as is known
        self._sink: Sink | None = None
        self._header_bytes = 0
        self._position = 0  # in the file, of the next byte appended
        self._reserved = 0
        self._free: queue.SimpleQueue[_Segment] = queue.SimpleQueue()
        self._num_segments = 0
        self._segment: _Segment | None = None
        self._pending: list[Future[None]] = []
        self._blocks: list[Block | None] = []
        self._gathered: list[tuple[int, int, NDArray[np.uint8]]] = []  # (key, length, bytes) of small pieces
        self._gathered_bytes = 0

    def close(self) -> None:
        if self._sink is not None:
            self._sink.abort()

    def run(self, pool: Workers, known: KnownBlocks | None) -> WrittenPack:
        # Falling item size: entries are aligned to their dtype without gaps.
        order = sorted(self._tensors, key=lambda name: DTYPES[self._tensors[name].spec.dtype].itemsize, reverse=True)
        tied = self._find_tied(order)
        own = [name for name in order if name not in tied] if tied else order
        candidates = self._find_candidates(pool, own, known) if known else {}
        self._needed = sum(self._sizes[name] for name in own)
        self._needed -= sum(block.length for block in candidates.values())
        blocks = self._blocks
        keys: dict[str, tuple[int, int]] = {}
        done = 0
        for name in order:
            if name not in tied:
                start = len(blocks)
                for index, piece in enumerate(self._pieces(name)):
                    self._add(pool, piece, candidates.get((name, index)) if candidates else None)
                keys[name] = (start, len(blocks))
            if self._progress is not None:
                done += self._sizes[name]
                self._progress(done, self.num_bytes)
        self._append_gathered(pool)
        if self._segment is not None:
            self._flush(pool)
        for future in self._pending:
            future.result()
        stored: dict[str, Stored] = {}
        for name, tensor in self._tensors.items():
            start, stop = keys[tied.get(name, name)]
            stored[name] = Stored(name, tensor.spec, tuple(blocks[start:stop]))  # type: ignore[arg-type]  # all written
        return self._finish(stored)

    def _find_tied(self, order: list[str]) -> dict[str, str]:
        """Name → an earlier name with the same memory: tied weights are the same blocks."""
        tied: dict[str, str] = {}
        owners: dict[tuple[int, int], str] = {}
        for name in order:
            memory = self._tensors[name].memory
            address = None if memory is None else address_of(memory)
            if address is not None and (owner := owners.setdefault(address, name)) is not name:
                tied[name] = owner
        return tied

    def _pieces(self, name: str) -> list[NDArray[np.uint8]]:
        """The tensor's bytes cut into blocks."""
        data = self._tensors[name].read()
        if 0 < len(data) <= BLOCK_BYTES:  # nearly always, and quick
            return [data]
        return [data[offset : offset + length] for offset, length in cut(len(data))]

    def _find_candidates(self, pool: Workers, names: list[str], known: KnownBlocks) -> dict[tuple[str, int], Block]:
        """Blocks that the parent has too, by checksum and digest. Reads what changed once more, at 20 GB/s.

        In the workers: where little changed, these digests are most of a save.
        """
        found: dict[tuple[str, int], Block] = {}
        looked_at = 0

        def compare(batch: list[tuple[str, int, NDArray[np.uint8]]]) -> list[tuple[str, int, Block | None]]:
            quick = 2 * len(found) > looked_at  # mostly unchanged: then digests alone are less work
            return [(name, index, _known_as(known, name, index, piece, quick=quick)) for name, index, piece in batch]

        def take(results: list[tuple[str, int, Block | None]]) -> None:
            nonlocal looked_at
            looked_at += len(results)
            same = {(name, index): block for name, index, block in results if block is not None}
            found.update(same)
            if known.chosen is not None:
                known.chosen(same.values())

        running: list[Future[list[tuple[str, int, Block | None]]]] = []
        batch: list[tuple[str, int, NDArray[np.uint8]]] = []
        size = 0
        for name in names:
            for index, piece in enumerate(self._pieces(name)):
                batch.append((name, index, piece))
                size += len(piece)
                if size >= _BATCH_BYTES:
                    running.append(pool.submit(compare, batch))
                    batch, size = [], 0
                    if len(running) > _MOST_BATCHES:
                        take(running.pop(0).result())
        last = compare(batch)
        for future in running:
            take(future.result())
        take(last)
        worth = known.worth_using(found.values())
        return {key: block for key, block in found.items() if block.pack in worth}

    def _add(self, pool: Workers, piece: NDArray[np.uint8], candidate: Block | None) -> None:
        """Refer to a known block with these bytes, or append them to the file."""
        key = len(self._blocks)
        self._blocks.append(candidate)
        if candidate is not None:
            return
        size = len(piece)
        if size < _SMALL_BYTES:
            self._gathered.append((key, size, piece))
            self._gathered_bytes += size
            if self._gathered_bytes > _GATHERED_BYTES:
                self._append_gathered(pool)
            return
        self._append_gathered(pool)
        segment, start = self._append(pool, piece)
        segment.blocks.append((key, start, size))

    def _append_gathered(self, pool: Workers) -> None:
        """Append small pieces that came one after the other."""
        if not self._gathered:
            return
        keys, sizes, pieces = zip(*self._gathered, strict=True)
        segment, start = self._append(pool, np.frombuffer(b"".join(pieces), np.uint8))
        segment.blocks.extend(zip(keys, accumulate(sizes, initial=start), sizes, strict=False))
        self._gathered.clear()
        self._gathered_bytes = 0

    def _append(self, pool: Workers, data: NDArray[np.uint8]) -> tuple[_Segment, int]:
        """Append bytes to the file; returns the segment that took them, and where in it they begin."""
        segment = self._segment or self._open()
        if segment.fill + len(data) > len(segment.data):
            segment = self._flush(pool)
        start, segment.fill = segment.fill, segment.fill + len(data)
        segment.data[start : segment.fill] = data
        self._position += len(data)
        return segment, start

    def _open(self) -> _Segment:
        """Open the file and its first segment, behind the space for the header."""
        self._header_bytes = self._position = measure_header(self._tensors, self._metadata, self._entry_name)
        self._sink = self._open_sink()
        self._segment = self._take()
        self._segment.file_offset = self._position
        return self._segment

    def _take(self) -> _Segment:
        """A free buffer; waits for one when all are on their way."""
        if self._free.empty() and self._num_segments < _SEGMENTS:
            self._num_segments += 1
            # Fresh memory is slow: no more of it than the largest block needs, or a write that the disk likes.
            largest = max(max(self._sizes.values(), default=0), _LEAST_SEGMENT_BYTES)
            size = -(-min(largest, self.num_bytes, BLOCK_BYTES) // ALIGNMENT) * ALIGNMENT
            return _Segment(aligned_buffer(size + ALIGNMENT))
        while self._free.empty():
            self._pending.pop(0).result()
        return self._free.get()

    def _flush(self, pool: Workers) -> _Segment:
        """Send the segment off; what lies behind its last whole page moves to the front of the next."""
        segment = self._segment
        assert segment is not None
        assert self._sink is not None
        end = segment.file_offset + segment.fill
        if end > self._reserved:
            # All that the file is known to need, at once: later, ext4 would wait until no write is on its way.
            self._reserved = max(end, self._header_bytes + self._needed)
            self._sink.reserve(self._reserved)
        carry = segment.fill % ALIGNMENT
        following = self._take()
        following.fill = carry
        following.data[:carry] = segment.data[segment.fill - carry : segment.fill]
        following.file_offset = segment.file_offset + segment.fill - carry
        self._pending.append(pool.submit(self._write, segment, segment.fill - carry))
        self._segment = following
        return following

    def _write(self, segment: _Segment, length: int) -> None:
        """In a worker: identify the blocks in a segment, write its whole pages, give the buffer back."""
        assert self._sink is not None
        pack, blocks, view, offset = self._pack, self._blocks, segment.view, segment.file_offset
        for key, start, size in segment.blocks:
            piece = view[start : start + size]
            blocks[key] = Block(pack, offset + start, size, digest(piece), checksum(piece))
        if length:
            self._sink.write(segment.file_offset, segment.data[:length])
        segment.blocks.clear()
        segment.fill = 0
        self._free.put(segment)

    def _finish(self, stored: dict[str, Stored]) -> WrittenPack:
        """Write the tail and the header, and commit the file; none if there is nothing to keep."""
        if self._sink is None:
            if self._metadata is None:
                return WrittenPack(stored, 0, 0, "")
            self._open()
        assert self._sink is not None
        assert self._segment is not None
        fill = self._segment.fill
        if fill:
            tail = -(-fill // ALIGNMENT) * ALIGNMENT
            self._segment.data[fill:tail] = 0
            self._sink.write(self._segment.file_offset, self._segment.data[:tail])
        start = self._header_bytes
        entries = entries_of(stored.values(), pack=self._pack, data_start=start, entry_name=self._entry_name)
        header = build_header(entries, self._metadata(stored, start) if self._metadata else {}, size=start)
        buffer = aligned_buffer(start)
        buffer[:] = np.frombuffer(header, np.uint8)
        self._sink.write(0, buffer)
        self._sink.commit(self._position)
        return WrittenPack(stored, self._position, start, digest(header))


def _known_as(known: KnownBlocks, name: str, index: int, piece: NDArray[np.uint8], *, quick: bool) -> Block | None:
    """The known block with the bytes of a piece. The digest decides; without `quick`, for those of a checksum only."""
    identity = digest(piece) if quick else ""
    block = known.by_place.get((name, index)) if quick else None
    if block is None or block.digest != identity:
        block = known.find(name, index, checksum(piece))
    if block is None or block.length != len(piece):
        return None
    return block if block.digest == (identity or digest(piece)) else None
