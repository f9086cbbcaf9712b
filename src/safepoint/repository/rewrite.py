"""Writing blocks again: read from wherever they are right, to a new pack, and `moved/` says that they are there.

Invariant: the new pack is durable before anything says that a block is in it, and nothing old is deleted here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from safepoint.errors import CorruptionError
from safepoint.repository.layout import pack_file
from safepoint.repository.moved import Place
from safepoint.repository.pack import write_pack
from safepoint.repository.places import Places
from safepoint.repository.read import Piece, read_piece
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, Progress
from safepoint.tree import Tensor, TensorSpec

ReadBlock: TypeAlias = Callable[[Block], NDArray[np.uint8]]
"""The bytes of a block, from wherever they are right."""


def rewrite(
    places: Places, blocks: Mapping[Place, Block], read: ReadBlock, *, progress: Progress | None = None
) -> PackDocument | None:
    """Write blocks to one new pack; the caller holds the shared lock.

    Args:
        places: of the repository.
        blocks: place that is to lead to the new one → block that should be there.
        read: gives their bytes.
        progress: see `Progress`.

    Returns:
        The new pack; None if there was nothing to write.

    Raises:
        CorruptionError: what was read is not what should be; nothing was said to have moved.
        StoreError: the store refused; nothing was said to have moved.
    """
    by_name = {f"__safepoint__/{block.digest}": block for block in blocks.values()}
    tensors = {
        name: Tensor(TensorSpec((block.length,), "uint8"), partial(read, block)) for name, block in by_name.items()
    }
    pack = secrets.token_hex(12)
    written = write_pack(partial(places.store.sink, pack_file(pack)), tensors, pack=pack, progress=progress)
    if not written.num_bytes:
        return None
    new = {name: stored.blocks[0] for name, stored in written.stored.items()}
    for name, block in by_name.items():
        if (new[name].digest, new[name].length) != (block.digest, block.length):
            places.store.delete(pack_file(pack))
            raise CorruptionError(
                f"a block changed on its way from {pack_file(block.pack)}: nothing was moved",
                file=pack_file(block.pack),
                expected=f"digest {block.digest}",
                found=new[name].digest,
            )
    document = PackDocument(pack, written.num_bytes, written.header_bytes, written.header_digest)
    moves = {
        place: (pack, new[f"__safepoint__/{block.digest}"].offset, block.length) for place, block in blocks.items()
    }
    places.move(moves, {pack: document})
    return document


def read_where_it_is(places: Places, block: Block) -> NDArray[np.uint8]:
    """A block's bytes, compared with its digest.

    Raises:
        CorruptionError: they are not right there.
    """
    data = np.empty(block.length, np.uint8)
    read_piece(places.store.read_into, Piece(pack_file(block.pack), block, "a block", 0, data), "full")
    return data
