"""Whole-model files: structure, values and tensors in one safetensors file that any tool opens.

Layout: tensors under the model's own names (optimizer state under `__safepoint__/optimizer/`), and in `__metadata__`:
`format`, what the ecosystem expects; `safepoint`, a JSON document (`ModelDocument`); `safepoint.digest`, BLAKE3 of that
document's bytes. The document repeats what the header says of each tensor, so a flipped bit anywhere is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from safepoint.codec import decode_node, decode_value, digest, encode_node, encode_value, read_header
from safepoint.codec.header import Header
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.repository.entries import entries_of
from safepoint.repository.last_block import LastBlock
from safepoint.repository.mapped import map_tensors
from safepoint.repository.pack import write_pack
from safepoint.repository.read import ReadInto, read_range, read_tensors, staging
from safepoint.repository.schema import FORMAT_VERSION, Count, Version, decode, encode
from safepoint.repository.stored import Block, Progress, Stored, check_blocks, parse_spec, with_rows
from safepoint.store import replace_file
from safepoint.store.files import close, fill_from, make_folder, open_file, read_bytes
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec

MODEL_DOCUMENT = "safepoint"
"""The key in `__metadata__` that a whole-model file has and no other."""
_DIGEST = "safepoint.digest"
_OPTIMIZER = "optimizer/"


class ModelTensor(msgspec.Struct, frozen=True):
    """A tensor of a model file: blocks are `[offset, length, digest, checksum]`, offsets from the end of the header."""

    name: str
    dtype: str
    shape: list[Count]
    blocks: list[tuple[Count, Count, str, str]]


class ModelDocument(msgspec.Struct, frozen=True):
    """What `__metadata__["safepoint"]` holds: how to rebuild the model, its values, and what each tensor must be."""

    version: Version
    format: str
    structure: dict[str, Any]
    skeleton: Any
    values: list[tuple[str, Any]]
    tensors: list[ModelTensor]


@final
@dataclass(frozen=True, slots=True)
class ModelFile:
    """An opened whole-model file.

    Attributes:
        path: where it is.
        format: what wrote it ("keras").
        structure: how to rebuild the model; data, to be checked before use.
        tree: its state; a tensor's `read` reads and verifies it from the file.
    """

    path: str
    format: str
    structure: dict[str, Any]
    tree: StateTree
    stored: Mapping[str, Stored]

    def load(self, names: Iterable[str] | None = None, *, progress: Progress | None = None) -> StateTree:
        """The tree with its tensors (or those called `names`) read in parallel and verified, in fresh memory.

        Each tensor starts at 64 bytes and may be adopted by a framework; the memory is never used again.

        Raises:
            CorruptionError: a block is not what was written; names file, tensor and bytes.
        """
        chosen = self._chosen(names)
        buffers = staging(chosen)
        _read(self.path, {n: (stored, buffers[n]) for n, stored in chosen.items()}, progress)
        return self._over(buffers)

    def map(self, names: Iterable[str] | None = None) -> StateTree:
        """As `load`, but the tensors stay in the file's own pages: see `map_tensors`.

        Raises:
            CorruptionError: a block is not what was written; names file, tensor and bytes.
        """
        descriptor = open_file(self.path)
        try:
            return self._over(map_tensors(descriptor, self._chosen(names), file=self.path))
        finally:
            close(descriptor)

    def _chosen(self, names: Iterable[str] | None) -> dict[str, Stored]:
        return {n: self.stored[n] for n in (self.stored if names is None else names) if n in self.stored}

    def _over(self, buffers: Mapping[str, NDArray[np.uint8]]) -> StateTree:
        """The tree, of its tensors those that have a buffer, over that."""
        leaves: dict[str, Leaf] = {}
        for name, leaf in self.tree.leaves.items():
            if not isinstance(leaf, Tensor):
                leaves[name] = leaf
            elif name in buffers:
                leaves[name] = Tensor.of_bytes(buffers[name], leaf.spec)
        return StateTree(leaves, self.tree.skeleton)


def write_model_file(
    path: str | os.PathLike[str],
    tree: StateTree,
    *,
    structure: Mapping[str, object],
    format: str,  # noqa: A002 — the word the ecosystem uses in the file's metadata
    progress: Progress | None = None,
) -> None:
    """Write a model to one file that replaces `path` when it is durable; a crash leaves the old file, whole.

    Raises:
        StoreError: it could not be written; the old file is untouched.
    """
    target = Path(path)
    values = [(name, encode_value(leaf)) for name, leaf in tree.leaves.items() if not isinstance(leaf, Tensor)]
    skeleton = encode_node(tree.skeleton)

    def metadata(stored: Mapping[str, Stored], data_start: int) -> dict[str, str]:
        tensors = [
            ModelTensor(
                tensor.name,
                tensor.spec.dtype,
                list(tensor.spec.shape),
                [(block.offset - data_start, block.length, block.digest, block.checksum) for block in tensor.blocks],
            )
            for tensor in stored.values()
        ]
        document = ModelDocument(FORMAT_VERSION, format, dict(structure), skeleton, values, tensors)
        text = encode(document)
        return {"format": format, MODEL_DOCUMENT: text.decode(), _DIGEST: digest(text)}

    make_folder(target.parent)
    write_pack(lambda: replace_file(target), tree.tensors, entry_name=_entry_name, metadata=metadata, progress=progress)


def is_model_header(metadata: Mapping[str, str]) -> bool:
    """Whether `__metadata__` of a safetensors file is that of a whole model, one of its two keys damaged perhaps."""
    return MODEL_DOCUMENT in metadata or _DIGEST in metadata


def read_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Open a whole-model file: reads and checks its header, no tensor.

    Raises:
        NotFoundError: there is no such file.
        UnsupportedError: a safetensors file that safepoint did not write as a model, or a newer one.
        CorruptionError: it is damaged.
    """
    name = os.fspath(path)
    header = _read_header(name)
    if not is_model_header(header.metadata):
        raise UnsupportedError(
            f"{name} holds tensors but no model",
            expected="a file that safepoint.save_model wrote",
            found="a safetensors file without structure",
            hint="build the model, and safepoint.Checkpoint(model=model).restore(path) puts them into it",
        )
    data = header.metadata.get(MODEL_DOCUMENT, "").encode()
    if header.metadata.get(_DIGEST) != digest(data):
        raise CorruptionError(f"{name} is damaged", file=name, expected="a header that fits its digest")
    document = decode(data, ModelDocument, file=name)
    file_bytes = header.data_start + max((entry.stop for entry in header.entries), default=0)
    stored = {t.name: _stored(name, t, header, file_bytes) for t in document.tensors}
    _check_header(name, header, document, stored)
    last = LastBlock()
    leaves: dict[str, Leaf] = {n: _lazy(name, s, last) for n, s in stored.items()}
    leaves.update((n, decode_value(value)) for n, value in document.values)
    if len(leaves) != len(document.tensors) + len(document.values):
        raise CorruptionError(f"{name} is damaged: a name stands twice", file=name)
    return ModelFile(
        name, document.format, document.structure, StateTree(leaves, decode_node(document.skeleton)), stored
    )


def _read_header(name: str) -> Header:
    descriptor = open_file(name)
    try:
        file_bytes = os.fstat(descriptor).st_size
        return read_header(lambda start, length: read_bytes(descriptor, start, length, name), file_bytes, file=name)
    finally:
        close(descriptor)


def _check_header(name: str, header: Header, document: ModelDocument, stored: Mapping[str, Stored]) -> None:
    """Whether the header, which other tools trust, says the same as the document, which is under a digest."""
    expected = entries_of(stored.values(), pack=name, data_start=header.data_start, entry_name=_entry_name)
    if list(header.entries) != expected:
        pairs = zip_longest(header.entries, expected)
        wrong = next((found or wanted for found, wanted in pairs if found != wanted), None)
        raise CorruptionError(
            f"{name} is damaged: its header contradicts itself", file=name, name=wrong.name if wrong else None
        )
    known = {"format": document.format, MODEL_DOCUMENT: None, _DIGEST: None}
    if header.metadata.get("format") != document.format or header.metadata.keys() != known.keys():
        raise CorruptionError(f"{name} is damaged: its metadata was changed", file=name)


def _entry_name(name: str) -> str:
    return f"__safepoint__/{name}" if name.startswith(_OPTIMIZER) else name


def _stored(file: str, tensor: ModelTensor, header: Header, file_bytes: int) -> Stored:
    spec = parse_spec(tensor.shape, tensor.dtype, name=tensor.name, file=file)
    blocks = tuple(Block(file, header.data_start + o, n, d, c) for o, n, d, c in tensor.blocks)
    return check_blocks(Stored(tensor.name, spec, blocks), {file: file_bytes}, file=file)


def _lazy(path: str, stored: Stored, last: LastBlock) -> Tensor:
    def read() -> NDArray[np.uint8]:
        buffer = np.empty(stored.spec.num_bytes, np.uint8)
        _read(path, {stored.name: (stored, buffer)}, None)
        return buffer

    def part(start: int, stop: int) -> NDArray[np.uint8]:
        with _reading(path, {stored.name: stored.spec}) as read_into:
            return read_range(read_into, stored, start, stop, file_of=str, last=last)

    return Tensor(stored.spec, read, read_range=part)


def _read(path: str, wanted: Mapping[str, tuple[Stored, NDArray[np.uint8]]], progress: Progress | None) -> None:
    with _reading(path, {name: stored.spec for name, (stored, _) in wanted.items()}) as read_into:
        read_tensors(read_into, wanted, file_of=str, progress=progress)


@contextmanager
def _reading(path: str, specs: Mapping[str, TensorSpec]) -> Iterator[ReadInto]:
    descriptor = open_file(path)
    try:
        yield lambda _file, offset, data: fill_from(descriptor, offset, data, path)
    except CorruptionError as error:
        spec = specs.get(error.name or "")
        raise error if spec is None else with_rows(error, spec) from error
    finally:
        close(descriptor)
