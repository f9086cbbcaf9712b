"""Manifests: a state tree as values and lists of blocks, and back.

Invariant: one manifest is enough to read everything of its snapshot, whole or by ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never, final

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import decode_node, decode_value, encode_node, encode_value
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.limits import MAX_TENSORS
from safepoint.repository.damage import reading, where_it_is
from safepoint.repository.derived import Derived
from safepoint.repository.last_block import LastBlock
from safepoint.repository.layout import pack_file
from safepoint.repository.places import Places
from safepoint.repository.read import Before, Verify, read_range, read_tensors, staging
from safepoint.repository.schema import (
    FORMAT_VERSION,
    BlockDocument,
    ManifestDocument,
    PackDocument,
    ShardDocument,
    TensorDocument,
)
from safepoint.repository.stored import Block, Progress, Stored, check_blocks, check_extent, parse_spec
from safepoint.repository.stream import TensorStream, check_tensors
from safepoint.store import Store, reader_past_cache, waits_for_disk
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, Value, check_names

LargeKind: TypeAlias = Literal["str", "bytes", "int"]

_LOOKS = 16

LARGE_VALUE_BYTES = 64 << 10
"""A value over this is kept as a block, not in the manifest."""


@final
class UnreadValue(str):
    """Stands for a large value that was not read; `Manifest.load` reads it."""

    __slots__ = ()


@final
@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot contains.

    Attributes:
        tree: its state; a tensor's `read` reads and verifies it.
        stored: name → tensor as stored, large values included.
        values: names of the stored tensors that are large values → "str", "bytes" or "int".
        packs: id → pack that it names; `places` knows what is elsewhere by now.
        places: where blocks are now.
        derived: what is known of blocks without reading them.
    """

    tree: StateTree
    stored: Mapping[str, Stored]
    values: Mapping[str, LargeKind]
    packs: Mapping[str, PackDocument]
    places: Places
    derived: Derived

    @property
    def store(self) -> Store:
        """Where the packs are."""
        return self.places.store

    def load(
        self,
        names: Iterable[str],
        *,
        into: Mapping[str, NDArray[np.uint8]] | None = None,
        verify: Verify = "checksum",
        before: Before | None = None,
        past_cache: bool = False,
        progress: Progress | None = None,
    ) -> StateTree:
        """The leaves called `names`: tensors read in parallel and verified, into their place in `into`, or staged.

        `past_cache`: nobody will read these bytes soon again.

        Raises:
            CorruptionError: a block is not what was written, or its pack is missing; names file, tensor and bytes.
        """
        chosen = set(names)
        wanted = {name: stored for name, stored in self.stored.items() if name in chosen}
        places = dict(into or {})

        def read(found: list[Stored]) -> None:
            check_extent(found, self.store.size, file_of=pack_file)
            places.update(staging({stored.name: stored for stored in found if stored.name not in places}))
            read_tensors(
                reader_past_cache(self.store) if past_cache else self.store.read_into,
                {stored.name: (stored, places[stored.name]) for stored in found},
                file_of=pack_file,
                verify=verify,
                before=before,
                progress=progress,
            )

        where_it_is(self.places, wanted.values(), read)
        leaves: dict[str, Leaf] = {}
        for name, leaf in self.tree.leaves.items():
            if name not in chosen:
                continue
            if name in self.values:
                leaves[name] = _large_value(name, self.values[name], places[name])
            elif isinstance(leaf, Tensor):
                leaves[name] = Tensor.of_bytes(places[name], leaf.spec)
            else:
                leaves[name] = leaf
        return StateTree(leaves, self.tree.skeleton)

    def check(self, names: Iterable[str], *, progress: Progress | None = None) -> None:
        """Read the tensors called `names` and verify them; keeps nothing.

        Raises:
            CorruptionError: as `load`.
        """

        def check(found: list[Stored]) -> None:
            check_extent(found, self.store.size, file_of=pack_file)
            check_tensors(self.store.read_into, found, progress=progress, file_of=pack_file)

        where_it_is(self.places, self._wanted(names), check)

    def stream(self, names: Iterable[str], *, progress: Progress | None = None) -> Mapping[str, Tensor]:
        """The tensors called `names`, each read and verified when it is asked for, through a little memory."""
        wanted = self.places.moved().located(self._wanted(names))
        check_extent(wanted, self.store.size, file_of=pack_file)
        tensors = TensorStream(self.store.read_into, wanted, progress=progress, file_of=pack_file).tensors()
        return {name: Tensor(tensor.spec, reading(self.places, wanted, tensor)) for name, tensor in tensors.items()}

    def waits(self, names: Iterable[str]) -> bool:
        """Whether reading the tensors called `names` would wait for a disk, as far as a look at a few blocks tells."""
        blocks = [block for stored in self._wanted(names) for block in stored.blocks]
        looked_at = blocks[:: -(-len(blocks) // _LOOKS)] if blocks else []
        cold = sum(waits_for_disk(self.store, pack_file(block.pack), block.offset) for block in looked_at)
        return 2 * cold > len(looked_at)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same bytes; told by their digests, nothing is read."""
        ours, theirs = (self.stored[name].blocks for name in (first, second))
        return [block.digest for block in ours] == [block.digest for block in theirs]

    def _wanted(self, names: Iterable[str]) -> list[Stored]:
        chosen = set(names)
        return [stored for name, stored in self.stored.items() if name in chosen]


def split_values(tree: StateTree) -> tuple[dict[str, Tensor], dict[str, LargeKind], dict[str, Value]]:
    """What goes into packs, which of that are large values, and what stays in the manifest.

    Raises:
        UnsupportedError: a large value of a manifest was not read.
    """
    tensors: dict[str, Tensor] = {}
    large: dict[str, LargeKind] = {}
    small: dict[str, Value] = {}
    for name, leaf in tree.leaves.items():
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
            continue
        if isinstance(leaf, UnreadValue):
            raise UnsupportedError(f"{name} was not read: {leaf}", hint="save what Manifest.load returns")
        found = _bytes_of_value(leaf)
        if found is None or len(found[1]) <= LARGE_VALUE_BYTES:
            small[name] = leaf
        else:
            large[name] = found[0]
            array = np.frombuffer(found[1], np.uint8)
            tensors[name] = Tensor.of_bytes(array, TensorSpec(array.shape, "uint8"))
    return tensors, large, small


def build_document(
    tree: StateTree, stored: Mapping[str, Stored], known_packs: Mapping[str, PackDocument]
) -> ManifestDocument:
    """The document of a tree whose tensors are stored."""
    _, large, small = split_values(tree)
    used = {block.pack for tensor in stored.values() for block in tensor.blocks}
    packs = [pack for name, pack in known_packs.items() if name in used]
    index = {pack.id: position for position, pack in enumerate(packs)}
    tensors = []
    lists: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}  # most shapes of a model come again and again
    for name in tree.leaves:
        if name not in stored:
            continue
        item = stored[name]
        spec = item.spec
        shape = spec.shape
        if shape not in lists:
            lists[shape] = ([0] * len(shape), list(shape))
        origin, sizes = lists[shape]
        blocks = [BlockDocument(index[b.pack], b.offset, b.length, b.digest, b.checksum) for b in item.blocks]
        shard = ShardDocument(origin, sizes, blocks)
        tensors.append(TensorDocument(name, spec.dtype, sizes, [shard], large.get(name, "")))
    values = [(name, encode_value(value)) for name, value in small.items()]
    return ManifestDocument(FORMAT_VERSION, packs, encode_node(tree.skeleton), values, tensors)


def parse_document(document: ManifestDocument, places: Places, *, derived: Derived, file: str) -> Manifest:
    """The manifest in a document, checked.

    Raises:
        CorruptionError: it contradicts itself.
        UnsupportedError: it has sharded or encoded tensors.
    """
    ids = [pack.id for pack in document.packs]
    packs = dict(zip(ids, document.packs, strict=True))
    pack_bytes = {pack.id: pack.num_bytes for pack in document.packs}
    last = LastBlock()
    stored: dict[str, Stored] = {}
    large: dict[str, LargeKind] = {}
    leaves: dict[str, Leaf] = {}
    for tensor in document.tensors:
        item = check_blocks(_parse_tensor(tensor, ids, file), pack_bytes, file=file)
        stored[tensor.name] = item
        if tensor.value:
            large[tensor.name] = tensor.value
            leaves[tensor.name] = UnreadValue(f"<{tensor.value} of {item.spec.num_bytes} bytes>")
        else:
            lazy = _Lazy(item, places, last)
            leaves[tensor.name] = Tensor(item.spec, lazy.read, read_range=lazy.part)
    leaves.update((name, decode_value(value)) for name, value in document.values)
    if len(leaves) > MAX_TENSORS:
        raise CorruptionError(f"{file} is damaged: it has more than {MAX_TENSORS:,} leaves", file=file)
    if len(leaves) != len(document.tensors) + len(document.values) or len(packs) != len(document.packs):
        raise CorruptionError(f"{file} is damaged: a name stands twice", file=file)
    try:
        check_names(leaves)
    except UnsupportedError as error:
        raise CorruptionError(f"{file} is damaged: a name that cannot be", file=file, found=error.message) from error
    tree = StateTree(leaves, decode_node(document.skeleton))
    return Manifest(tree, stored, large, packs, places, derived)


def _parse_tensor(tensor: TensorDocument, packs: Sequence[str], file: str) -> Stored:
    shape = tensor.shape
    if tensor.codec or len(tensor.shards) != 1 or tensor.shards[0].shape != shape:
        raise UnsupportedError(
            f"{tensor.name} is {f'encoded as {tensor.codec!r}' if tensor.codec else 'sharded'}",
            expected="one shard of raw blocks",
            hint="update safepoint: this version reads no other tensors",
        )
    spec = parse_spec(shape, tensor.dtype, name=tensor.name, file=file)
    shard = tensor.shards[0]
    sound = len(shard.offset) == len(shape) and not any(shard.offset) and (not tensor.value or spec.dtype == "uint8")
    blocks = shard.blocks
    if not sound or (blocks and max([block.pack for block in blocks]) >= len(packs)):
        raise CorruptionError(f"{file} is damaged: {tensor.name} contradicts itself", file=file, name=tensor.name)
    found = [Block(packs[b.pack], b.offset, b.length, b.digest, b.checksum) for b in blocks]
    return Stored(tensor.name, spec, tuple(found))


@final
class _Lazy:
    """A stored tensor that is read and verified when it is asked for."""

    __slots__ = ("_last", "_places", "_stored")

    def __init__(self, stored: Stored, places: Places, last: LastBlock) -> None:
        self._stored = stored
        self._places = places
        self._last = last

    def read(self) -> NDArray[np.uint8]:
        """All of it, in fresh memory."""
        return where_it_is(self._places, [self._stored], self._read_from)

    def part(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes from `start` to `stop`."""

        def read_part(found: list[Stored]) -> NDArray[np.uint8]:
            store = self._places.store
            return read_range(store.read_into, found[0], start, stop, file_of=pack_file, last=self._last)

        return where_it_is(self._places, [self._stored], read_part)

    def _read_from(self, found: list[Stored]) -> NDArray[np.uint8]:
        store = self._places.store
        check_extent(found, store.size, file_of=pack_file)
        buffer = np.empty(self._stored.spec.num_bytes, np.uint8)
        read_tensors(store.read_into, {self._stored.name: (found[0], buffer)}, file_of=pack_file)
        return buffer


def _bytes_of_value(value: Value) -> tuple[LargeKind, bytes] | None:
    """The bytes of a value that might be too large for the manifest, or None."""
    if isinstance(value, str):
        # The length in bytes is at most four times the length in characters.
        return ("str", value.encode("utf-8", "surrogatepass")) if len(value) * 4 > LARGE_VALUE_BYTES else None
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, int) and value.bit_length() > 63:
        return "int", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return None


def _large_value(name: str, kind: LargeKind, data: NDArray[np.uint8]) -> Value:
    raw = data.tobytes()
    match kind:
        case "bytes":
            return raw
        case "int":
            return int.from_bytes(raw, "little", signed=True)
        case "str":
            try:
                return raw.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise CorruptionError(f"{name} is not text", name=name, found=error) from error
        case _:
            assert_never(kind)
