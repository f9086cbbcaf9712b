"""Tensors where they lie in a file: its pages, mapped privately, every block of them verified before anyone sees it.

Invariant: nothing that is written to the memory reaches the file; pages that nobody writes to stay the file's own, and
are shared by all processes that map it.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import checksum
from safepoint.errors import StoreError
from safepoint.repository.read import READ_THREADS
from safepoint.repository.stored import Block, Stored, damaged
from safepoint.repository.workers import Workers
from safepoint.tree import DTYPES


def map_tensors(descriptor: int, wanted: Mapping[str, Stored], *, file: str) -> dict[str, NDArray[np.uint8]]:
    """A writable `uint8[num_bytes]` for each tensor, in the file's pages, which live as long as any of them.

    The file must not be written to or cut short while they do; replacing it, as every save does, is no matter.

    Args:
        descriptor: of the file, open for reading; it may be closed afterwards.
        wanted: name → stored tensor, all in this file.
        file: its name, for messages.

    Raises:
        CorruptionError: a block is not what was written; names the tensor and the bytes.
        StoreError: the file cannot be mapped.
    """
    try:
        pages = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        refusal = error if isinstance(error, OSError) else OSError(str(error))
        raise StoreError(f"cannot map {file}", error=refusal, path=file, hint="mmap=False") from error
    if hasattr(mmap, "MADV_WILLNEED"):
        pages.madvise(mmap.MADV_WILLNEED)
    memory = np.frombuffer(pages, np.uint8)

    def verify(task: tuple[Stored, int, Block]) -> None:
        stored, offset, block = task
        found = checksum(memory[block.offset : block.offset + block.length])
        if found != block.checksum:
            expected = f"checksum {block.checksum}"
            raise damaged(block, file=file, name=stored.name, offset=offset, expected=expected, found=found)

    tasks: list[tuple[Stored, int, Block]] = []
    for stored in wanted.values():
        offset = 0
        for block in stored.blocks:
            tasks.append((stored, offset, block))
            offset += block.length
    tasks.sort(key=lambda task: task[2].offset)
    with Workers(READ_THREADS, "safepoint-map") as pool:
        for _ in pool.map(verify, tasks):
            pass
    return {name: _in_place(memory, stored) for name, stored in wanted.items()}


def _in_place(memory: NDArray[np.uint8], stored: Stored) -> NDArray[np.uint8]:
    """The tensor's part of the file; a copy of it where its blocks do not follow each other, or not on its items."""
    if not stored.blocks:
        return np.empty(0, np.uint8)
    start = position = stored.blocks[0].offset
    for block in stored.blocks:
        if block.offset != position:
            return np.concatenate([memory[each.offset : each.offset + each.length] for each in stored.blocks])
        position += block.length
    part = memory[start:position]
    return part.copy() if start % DTYPES[stored.spec.dtype].itemsize else part
