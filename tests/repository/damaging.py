"""Damage on purpose, for tests: flipped bits in blocks, wherever they lie by now."""

from __future__ import annotations

from safepoint.repository import Repository
from safepoint.repository.layout import pack_file
from safepoint.repository.stored import Block
from safepoint.store import MemoryStore


def blocks_of(repository: Repository, reference: str, name: str) -> tuple[Block, ...]:
    """The blocks of a tensor, where they are now."""
    manifest = repository.manifest(repository.resolve(reference))
    return manifest.places.moved().located([manifest.stored[name]])[0].blocks


def flip(store: MemoryStore, block: Block, *, byte: int = 3) -> str:
    """Flip a bit of a block; returns the file."""
    file = pack_file(block.pack)
    data = bytearray(store.files[file])
    data[block.offset + byte] ^= 4
    store.files[file] = bytes(data)
    return file
