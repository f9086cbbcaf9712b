"""Reading a state that is too large to stage: checked as a whole first, then read again piece by piece.

Fresh memory for a state costs more than reading it twice (page faults run at a tenth of the speed of `memcpy`), so
both passes go through a little memory that is used again and again.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from safepoint.repository.read import READ_THREADS, ReadInto, Run, check_run, read_tensors, runs_of
from safepoint.repository.stored import Progress, Stored
from safepoint.repository.workers import Workers
from safepoint.store import aligned_buffer
from safepoint.tree import Tensor

_BATCH_BYTES = 32 << 20
_CACHED_BYTES = 1 << 20  # stays in a core's cache: what is only checked need not go out to memory


def check_tensors(
    read_into: ReadInto, wanted: Sequence[Stored], *, progress: Progress | None, file_of: Callable[[str], str]
) -> None:
    """Read every block of some tensors and compare its checksum; keeps nothing.

    Raises:
        CorruptionError: a block is not what was written; names file, tensor and bytes.
    """
    total = sum(stored.spec.num_bytes for stored in wanted)
    buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
    for _ in range(READ_THREADS):
        buffers.put(aligned_buffer(_CACHED_BYTES))

    def check(run: Run) -> int:
        buffer = buffers.get()
        try:
            return check_run(read_into, run, buffer)
        finally:
            buffers.put(buffer)

    done = 0
    with Workers(READ_THREADS, "safepoint-check", num_bytes=total) as pool:
        for count in pool.map(check, list(runs_of(wanted, file_of))):
            done += count
            if progress is not None:
                progress(done, total)


@final
class TensorStream:
    """Tensors read and verified when they are asked for, neighbours together, in memory that comes round again.

    What `read` returns stays valid for as long as anybody holds it; memory that nobody holds is used for what comes.
    """

    def __init__(
        self, read_into: ReadInto, wanted: Sequence[Stored], *, progress: Progress | None, file_of: Callable[[str], str]
    ) -> None:
        self._read_into = read_into
        self._file_of = file_of
        self._progress = progress
        self._wanted = list(wanted)
        self._position = {stored.name: index for index, stored in enumerate(wanted)}
        self._total = sum(stored.spec.num_bytes for stored in wanted)
        self._done = 0
        self._ready: dict[str, NDArray[np.uint8]] = {}
        self._buffers: list[NDArray[np.uint8]] = []

    def tensors(self) -> Mapping[str, Tensor]:
        """Name → tensor whose `read` reads it."""
        return {stored.name: Tensor(stored.spec, self._reader(stored.name)) for stored in self._wanted}

    def _reader(self, name: str) -> Callable[[], NDArray[np.uint8]]:
        return lambda: self._read(name)

    def _read(self, name: str) -> NDArray[np.uint8]:
        if name not in self._ready:
            self._ready.clear()
            self._read_batch(self._position[name])
        return self._ready.pop(name)

    def _read_batch(self, first: int) -> None:
        batch: list[Stored] = []
        size = 0
        for stored in self._wanted[first:]:
            if batch and size + stored.spec.num_bytes > _BATCH_BYTES:
                break
            batch.append(stored)
            size += _rounded(stored.spec.num_bytes)
        buffer = self._take(size)
        places: dict[str, tuple[Stored, NDArray[np.uint8]]] = {}
        offset = 0
        for stored in batch:
            places[stored.name] = (stored, buffer[offset : offset + stored.spec.num_bytes])
            offset += _rounded(stored.spec.num_bytes)
        read_tensors(self._read_into, places, file_of=self._file_of)
        self._ready = {name: target for name, (_, target) in places.items()}
        self._done = min(self._total, self._done + sum(stored.spec.num_bytes for stored in batch))
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Memory that nobody holds a view of (NumPy's views hold the array that owns the memory)."""
        for index in range(len(self._buffers)):
            if sys.getrefcount(self._buffers[index]) == _UNHELD and len(self._buffers[index]) >= num_bytes:
                return self._buffers[index]
        buffer = np.empty(max(num_bytes, min(_BATCH_BYTES, self._total)), np.uint8)
        self._buffers = [kept for kept in self._buffers if len(kept) >= len(buffer)]
        self._buffers.append(buffer)
        return buffer


def _count_references() -> int:
    """What `sys.getrefcount` says of an array that only a list holds."""
    held = [np.empty(1, np.uint8)]
    return sys.getrefcount(held[0])


_UNHELD = _count_references()


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // 64) * 64
