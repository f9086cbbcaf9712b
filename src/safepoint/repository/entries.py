"""What the header of a pack or model file says, as a function of the tensors in it: written once, checked on load."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter

from safepoint.codec import BLOCK_BYTES, CHECKSUM_LENGTH, DIGEST_LENGTH, Entry, build_header, cut
from safepoint.repository.stored import Block, Stored
from safepoint.store.protocol import ALIGNMENT
from safepoint.tree import DTYPES, Tensor, TensorSpec

RESERVED_PREFIX = "__safepoint__/"
Metadata = Callable[[Mapping[str, Stored], int], Mapping[str, str]]
"""(stored tensors, where the data starts in the file) → `__metadata__`."""

EntryName = Callable[[str], str]
"""Name of a tensor → its key in the header."""

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
        new = [block for block in tensor.blocks if block.pack == pack and block.offset not in covered]
        covered.update([block.offset for block in new])
        spec = tensor.spec
        dtype = DTYPES[spec.dtype].safetensors
        if dtype and len(new) == len(tensor.blocks) and _is_public(tensor.name) and _is_one_stretch(new):
            start = new[0].offset - data_start if new else 0
            name = entry_name(tensor.name)
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
    for name, tensor in tensors.items():
        num_blocks = -(-tensor.spec.num_bytes // BLOCK_BYTES)
        entry_bytes = _key_bytes(entry_name(name)) + _shape_bytes(tensor.spec) + _ENTRY_BYTES
        size += max(entry_bytes, num_blocks * _BLOCK_ENTRY_BYTES)
    if metadata is not None:
        size += len(build_header([], metadata(_placeholders(tensors), 0)))
    return -(-size // ALIGNMENT) * ALIGNMENT


def _key_bytes(name: str) -> int:
    """The length of a name in JSON, in quotes."""
    return len(name) + 2 if _AS_IT_IS(name) else len(json.dumps(name))


def _shape_bytes(spec: TensorSpec) -> int:
    """At least the length of a shape in JSON: no size is larger than their product, unless that is zero."""
    return len(spec.shape) * (len(str(spec.num_elements)) + 1) if spec.num_elements else len(str(spec.shape))


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
    if len(blocks) < 2:  # nearly always, and quick
        return True
    end = None
    for block in blocks:
        if end not in {None, block.offset}:
            return False
        end = block.offset + block.length
    return True
