"""What snapshots need: blocks where they are now, packs, and what of their documents is damaged.

Invariant: nothing is read but documents; each block stands once, however many snapshots and tensors share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from safepoint.codec import digest
from safepoint.errors import CorruptionError, SafepointError
from safepoint.repository.documents import Documents
from safepoint.repository.history import Snapshot
from safepoint.repository.layout import pack_file
from safepoint.repository.schema import PackDocument
from safepoint.repository.stored import Block, with_rows
from safepoint.store import Store
from safepoint.tree import TensorSpec


@final
@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        snapshots: that need it.
        file: that is damaged, or None.
        name: of a tensor in it, or None.
        span: (first, last + 1) byte of that tensor, or None.
        message: all of it in words.
        rows: (first, last + 1) index along the tensor's first axis, or None.
    """

    snapshots: tuple[int, ...]
    file: str | None
    name: str | None
    span: tuple[int, int] | None
    message: str
    rows: tuple[int, int] | None = None


@final
@dataclass(slots=True)
class BlockUse:
    """Where a block is used: first by which tensor, at which of its bytes, and by which snapshots."""

    name: str
    offset: int
    spec: TensorSpec
    snapshots: set[int]


@final
@dataclass(slots=True)
class Survey:
    """What some snapshots need.

    Attributes:
        blocks: block where it is now → who uses it.
        packs: pack that such blocks are in → numbers of the snapshots that need it.
        damage: what is wrong with documents.
        broken: numbers of the snapshots whose manifests cannot be read.
        passed: packs about which `moved/` is needed to find all this.
    """

    blocks: dict[Block, BlockUse] = field(default_factory=dict)
    packs: dict[PackDocument, set[int]] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)


def survey(documents: Documents, snapshots: Sequence[Snapshot], *, strict: bool = False) -> Survey:
    """Read the manifests of `snapshots`, and where their blocks are now.

    Raises:
        SafepointError: with `strict`, the first document that cannot be read.
    """
    moved = documents.places.moved()
    for error in moved.unreadable.values() if strict else ():
        raise error
    found = Survey(damage=[damage_of((), error) for error in moved.unreadable.values()])
    for snapshot in snapshots:
        try:
            manifest = documents.manifest(snapshot.manifest, number=snapshot.number)
        except SafepointError as error:
            if strict:
                raise
            found.broken.add(snapshot.number)
            found.damage.append(damage_of((snapshot.number,), error))
            continue
        needed: set[str] = set()
        for stored, now in zip(manifest.stored.values(), moved.located(manifest.stored.values()), strict=True):
            offset = 0
            for block in now.blocks:
                use = found.blocks.setdefault(block, BlockUse(stored.name, offset, stored.spec, set()))
                use.snapshots.add(snapshot.number)
                needed.add(block.pack)
                offset += block.length
            found.passed.update(moved.passed(stored.blocks))
        known = {**moved.packs, **manifest.packs}
        for pack in needed:
            found.packs.setdefault(known[pack], set()).add(snapshot.number)
    return found


def damage_of(numbers: tuple[int, ...], error: SafepointError, spec: TensorSpec | None = None) -> Damage:
    """What an error says, about a tensor of that spec."""
    if isinstance(error, CorruptionError):
        error = error if spec is None else with_rows(error, spec)
        return Damage(numbers, error.file, error.name, error.span, error.message, error.rows)
    return Damage(numbers, None, None, None, error.message)


def check_header(store: Store, pack: PackDocument) -> None:
    """Whether a pack is as long as it should be, and its header what was written.

    Raises:
        CorruptionError: it is not.
        NotFoundError: there is no such file.
    """
    file = pack_file(pack.id)
    found = store.size(file)
    if found != pack.num_bytes or pack.header_bytes > found:
        raise CorruptionError(
            f"{file} is damaged", file=file, expected=f"{pack.num_bytes} bytes", found=f"{found} bytes"
        )
    header = np.empty(pack.header_bytes, np.uint8)
    store.read_into(file, 0, header)
    if digest(header) != pack.header_digest:
        raise CorruptionError(
            f"{file} has a damaged header; its tensors can still be restored",
            file=file,
            expected=f"digest {pack.header_digest}",
            found=digest(header),
        )
