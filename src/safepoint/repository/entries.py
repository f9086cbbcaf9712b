"""What the header of a pack or model file says, as a function of the tensors in it: written once, checked on load."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter

from safepoint.codec import BLOCK_BYTES, CHECKSUM_LENGTH, DIGEST_LENGTH, Entry, build_header, cut
from safepoint.repository.stored import Block, Stored
from safepoint.store.protocol import ALIGNMENT
from safepoint.tree import DTYPES, Tensor

RESERVED_PREFIX = "__safepoint__/"
Metadata = Callable[[Mapping[str, Stored], int], Mapping[str, str]]
"""(stored tensors, where the data starts in the file) → `__metadata__`."""

EntryName = Callable[[str], str]
"""Name of a tensor → its key in the header."""

_DTYPES = {name: dtype.safetensors for name, dtype in DTYPES.items()}
_LARGEST_OFFSET = 10**19  # twenty digits, more than any file
# At least the length of `:{"dtype":"F8_E4M3","shape":[],"data_offsets":[a,b]},`: an entry but for its name and shape.
_ENTRY_BYTES = 2 * len(str(_LARGEST_OFFSET)) + 56
_AS_IT_IS = re.compile(r"[\w./ :-]*", re.ASCII).fullmatch  # names that JSON does not escape
_BLOCK_ENTRY_BYTES = DIGEST_LENGTH + 160  # the longest entry of one block


def entries_of(stored: Iterable[Stored], *, pack: str, data_start: int, entry_name: EntryName) -> list[Entry]:
    """One entry for a whole tensor of a dtype that safetensors has, else one of U8 for each block; in file order.

    Args:
        stored: tensors; only what is in `pack` counts, and each block once, for the first tensor that has it.
        pack: whose header it is.
        data_start: where the data starts in the file.
        entry_name: see `EntryName`.
    """
    entries: dict[str, Entry] = {}
    covered: set[int] = set()
    for tensor in stored:
        name, spec, blocks = tensor.name, tensor.spec, tensor.blocks
        new = [block for block in blocks if block.pack == pack and block.offset not in covered]
        if not new and blocks:
            continue
        for block in new:
            covered.add(block.offset)
        dtype = _DTYPES[spec.dtype]
        if dtype and len(new) == len(blocks) and _is_public(name) and (len(new) < 2 or _is_one_stretch(new)):
            start = new[0].offset - data_start if new else 0
            name = entry_name(name)
            entries[name] = Entry(name, dtype, spec.shape, start, start + spec.num_bytes)
            continue
        for block in new:
            name = f"{RESERVED_PREFIX}{block.digest}"
            if name in entries:  # equal blocks written twice in one file
                name += f"/{len(entries)}"
            start = block.offset - data_start
            entries[name] = Entry(name, "U8", (block.length,), start, start + block.length)
    return sorted(entries.values(), key=attrgetter("start", "stop"))


def measure_header(tensors: Mapping[str, Tensor], metadata: Metadata | None, entry_name: EntryName) -> int:
    """Room for the longest header that these tensors could need, in whole pages."""
    size = 4 << 10
    shape_bytes: dict[tuple[int, ...], int] = {}  # most shapes of a model come again and again
    for name, tensor in tensors.items():
        spec = tensor.spec
        shape = spec.shape
        if shape not in shape_bytes:
            shape_bytes[shape] = len(str(shape))
        entry_bytes = _key_bytes(entry_name(name)) + shape_bytes[shape] + _ENTRY_BYTES
        blocks_bytes = -(-spec.num_bytes // BLOCK_BYTES) * _BLOCK_ENTRY_BYTES
        size += max(entry_bytes, blocks_bytes)
    if metadata is not None:
        size += len(build_header([], metadata(_placeholders(tensors), 0)))
    return -(-size // ALIGNMENT) * ALIGNMENT


def _key_bytes(name: str) -> int:
    """The length of a name in JSON, in quotes."""
    return len(name) + 2 if _AS_IT_IS(name) else len(json.dumps(name))


def _placeholders(tensors: Mapping[str, Tensor]) -> Mapping[str, Stored]:
    digest, checksum = "0" * DIGEST_LENGTH, "0" * CHECKSUM_LENGTH
    return {
        name: Stored(
            name,
            tensor.spec,
            tuple(Block("", _LARGEST_OFFSET, length, digest, checksum) for _, length in cut(tensor.spec.num_bytes)),
        )
        for name, tensor in tensors.items()
    }


def _is_public(name: str) -> bool:
    return not name.startswith(RESERVED_PREFIX) and name != "__metadata__"


def _is_one_stretch(blocks: Collection[Block]) -> bool:
    end = None
    for block in blocks:
        if end not in {None, block.offset}:
            return False
        end = block.offset + block.length
    return True
