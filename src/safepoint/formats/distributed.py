"""PyTorch's distributed checkpoints: a folder of many ranks' files, and `.metadata` that says what is where.

`.metadata` is a pickle, which PyTorch itself loads unrestricted; here it goes through `pickles`. Each part of a tensor
is a small PyTorch file inside a rank's. Source: `metadata.py`, `filesystem.py` in `torch/distributed/checkpoint`, 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np

from safepoint.errors import CorruptionError, SafepointError, UnsupportedError, UntrustedError
from safepoint.formats.contents import Contents, check_inside, checked_shape
from safepoint.formats.cursor import Cursor
from safepoint.formats.files import File, Folder, Window
from safepoint.formats.members import Archive
from safepoint.formats.pickles import Build, Global, Pairs, Record, Unpickler
from safepoint.formats.pytorch import archive_prefix, read_archive
from safepoint.formats.torch_names import dtype_of_name, is_inert, names
from safepoint.tree import Branch, Leaf, LeafRef, Node, StateTree, Tensor, TensorSpec, dtype_of, join_name
from safepoint.tree.leaves import Bytes

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint"
_MAX_PARTS = 5_000_000
_MAX_VALUE_BYTES = 16 << 20
_MAX_DEPTH = 64
_Path: TypeAlias = tuple[str | int, ...]


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """Where a part is: a stretch of a rank's file."""

    path: str
    offset: int
    length: int


def read(folder: Path) -> Contents:
    """The contents of a checkpoint folder, whatever the number of ranks that wrote it.

    Raises:
        UntrustedError: its `.metadata` names something that no checkpoint has.
        CorruptionError: parts that do not make up their tensor, or lie elsewhere.
        NotFoundError: a rank's file is missing.
    """
    files = Folder(folder)
    index = files.open(METADATA)
    try:
        cursor = Cursor(index.read, 0, index.num_bytes, file=index.path)
        document = _fields(Unpickler(cursor, _names(), inert=is_inert).load(), index.path)
    finally:
        index.close()
    with _damage(index.path):
        places = {_index(key): _place(value, index.path) for key, value in _pairs(document.get("storage_data"))}
    opened = {path: files.open(path) for path in sorted({place.path for place in places.values()})}
    for place in places.values():
        check_inside(opened[place.path], place.offset, place.length)
    leaves: dict[str, Leaf] = {}
    nodes: dict[_Path, Node] = {}
    left_out: dict[str, str] = {}
    paths = _paths(document.get("planner_data"))
    with _damage(index.path):
        for flat, described in _pairs(document.get("state_dict_metadata")):
            path = paths.get(flat, (flat,)) if isinstance(flat, str) else ()
            name = _name(path)
            if not path or path in nodes or name in leaves:
                raise CorruptionError(f"{index.path} has a name twice", file=index.path, name=str(flat)[:80])
            if isinstance(described, Record) and described.name.name == "BytesStorageMetadata":
                try:
                    value = _value(flat, places.get((flat, None)), opened, index.path)
                except (UntrustedError, UnsupportedError) as error:
                    left_out[name] = error.message
                    continue
                leaves |= {join_name(name, key): leaf for key, leaf in value.leaves.items()}
                nodes[path] = _under(name, value.skeleton)
            else:
                leaves[name] = _tensor(flat, _fields(described, index.path), places, opened, index.path)
                nodes[path] = LeafRef(name)
    metadata: dict[str, Any] = {"files": list(opened)} | ({"not_read": left_out} if left_out else {})
    title = f"PyTorch distributed checkpoint, {len(opened)} file{'s' if len(opened) != 1 else ''}"
    tree = StateTree(leaves, _nested(nodes))
    return Contents("distributed", title, "PyTorch", str(folder), tree, metadata, tuple(opened.values()))


@contextmanager
def _damage(file: str) -> Iterator[None]:
    """What does not have the form that it should is damage."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, SafepointError):
            raise
        raise CorruptionError(f"{file} is damaged", file=file, found=error) from error


def _tensor(
    name: str,
    described: Mapping[str, Any],
    places: Mapping[tuple[str, tuple[int, ...] | None], _Place],
    opened: Mapping[str, File],
    file: str,
) -> Tensor:
    properties = described["properties"]
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) else _fields(properties, file).get("dtype")
    spec = TensorSpec(checked_shape(described["size"], file=file, name=name), dtype_of_name(dtype))
    parts: list[tuple[tuple[int, ...], TensorSpec, _Place]] = []
    for chunk in described["chunks"]:
        fields = _fields(chunk, file)
        offsets = checked_shape(fields["offsets"], file=file, name=name)
        part = TensorSpec(checked_shape(fields["sizes"], file=file, name=name), spec.dtype)
        ends = [start + size for start, size in zip(offsets, part.shape, strict=True)]
        place = places.get((name, offsets))
        if len(ends) != len(spec.shape) or any(e > n for e, n in zip(ends, spec.shape, strict=True)) or place is None:
            raise CorruptionError(f"{file} is damaged: a part of {name[:80]}", file=file, name=name)
        parts.append((offsets, part, place))
    if sum(part.num_elements for _, part, _ in parts) != spec.num_elements:
        raise CorruptionError(f"{file} is damaged: the parts of {name[:80]} do not make it up", file=file, name=name)
    if len(parts) == 1:
        ((_, part, place),) = parts
        return Tensor(
            spec,
            lambda: _part(place, part, opened, name).read(),
            read_range=lambda start, stop: _part(place, part, opened, name).part(start, stop),
        )
    return Tensor(spec, partial(_joined, spec, parts, opened, name))


def _joined(
    spec: TensorSpec, parts: list[tuple[tuple[int, ...], TensorSpec, _Place]], opened: Mapping[str, File], name: str
) -> Bytes:
    out = np.empty(spec.shape, dtype_of(spec.dtype))
    for offsets, part, place in parts:
        box = tuple(slice(start, start + size) for start, size in zip(offsets, part.shape, strict=True))
        out[box] = _part(place, part, opened, name).numpy()
    return out.reshape(-1).view(np.uint8)


def _part(place: _Place, spec: TensorSpec, opened: Mapping[str, File], name: str) -> Tensor:
    """The tensor in a part's own little file."""
    leaves = _contents(place, opened).tree.leaves
    leaf = leaves.get("")
    if not isinstance(leaf, Tensor) or leaf.spec != spec:
        raise CorruptionError(
            f"{place.path} is damaged: a part of {name[:80]}",
            file=place.path,
            name=name,
            expected=spec,
            found=leaf.spec if isinstance(leaf, Tensor) else "no tensor",
        )
    return leaf


def _value(name: str, place: _Place | None, opened: Mapping[str, File], file: str) -> StateTree:
    if place is None or place.length > _MAX_VALUE_BYTES:
        raise CorruptionError(f"{file} is damaged: {name[:80]} is nowhere, or too large", file=file, name=name)
    return _contents(place, opened).tree


def _paths(planned: Any) -> dict[str, _Path]:
    """Flat name → keys of dictionaries and indices of lists, where the checkpoint says so, and all differ as names."""
    pairs = planned.pairs if isinstance(planned, Pairs) and len(planned.pairs) <= _MAX_PARTS else ()
    found = {name: path for name, path in pairs if isinstance(name, str) and _is_path(path)}
    return found if len(set(map(_name, found.values()))) == len(found) else {}


def _is_path(path: object) -> bool:
    return (
        isinstance(path, tuple)
        and 0 < len(path) <= _MAX_DEPTH
        and all((type(part) is str and part) or (type(part) is int and part >= 0) for part in path)
    )


def _name(path: _Path) -> str:
    return "/".join(map(str, path))


def _under(name: str, node: Node) -> Node:
    """A skeleton whose leaves are called by a name of the whole's."""
    if isinstance(node, LeafRef):
        return LeafRef(join_name(name, node.name), node.kind)
    return Branch(node.kind, node.keys, tuple(_under(name, child) for child in node.children))


def _nested(nodes: Mapping[_Path, Node]) -> Branch:
    """Dictionaries, and lists where all keys are indices; without children, if a path leads through a leaf."""
    root: dict[str | int, Any] = {}
    for path, node in nodes.items():
        place = root
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                return Branch("dict")
        if place.setdefault(path[-1], node) is not node:
            return Branch("dict")
    return _branch(root)


def _branch(content: Mapping[str | int, Any]) -> Branch:
    items = {key: _branch(item) if isinstance(item, dict) else item for key, item in content.items()}
    if items and items.keys() == set(range(len(items))):
        return Branch("list", (), tuple(items[index] for index in range(len(items))))
    return Branch("dict", tuple(items), tuple(items.values()))


def _contents(place: _Place, opened: Mapping[str, File]) -> Contents:
    archive = Archive(Window(opened[place.path], place.offset, place.length))
    prefix = archive_prefix(archive)
    if prefix is None:
        raise CorruptionError(f"{place.path} is damaged: a part that is no PyTorch file", file=place.path)
    return read_archive(archive, prefix)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, Pairs) or len(value.pairs) > _MAX_PARTS:
        raise TypeError("no dictionary")
    return value.pairs


def _fields(value: Any, file: str) -> dict[str, Any]:
    """The state of a dataclass."""
    if not isinstance(value, Record) or not isinstance(value.state, Pairs):
        raise CorruptionError(f"{file} is damaged: no metadata of a checkpoint", file=file)
    return {key: content for key, content in value.state.pairs if isinstance(key, str)}


def _index(value: Any) -> tuple[str, tuple[int, ...] | None]:
    fields = _fields(value, METADATA)
    offset = fields.get("offset")
    return str(fields["fqn"]), None if offset is None else checked_shape(offset, file=METADATA, name="an index")


def _place(value: Any, file: str) -> _Place:
    fields = _fields(value, file)
    if fields.get("transform_descriptors"):
        raise UnsupportedError(f"{file} has transformed (compressed) parts", hint="save it without extensions")
    path, offset, length = fields["relative_path"], fields["offset"], fields["length"]
    if not isinstance(path, str) or type(offset) is not int or type(length) is not int:
        raise CorruptionError(f"{file} is damaged: a place that is none", file=file)
    return _Place(path, offset, length)


def _names() -> Mapping[Global, Build]:
    found = dict(names())
    classes = {
        f"{_MODULE}.metadata": (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "MetadataIndex", "StorageMeta",
        ),
        f"{_MODULE}.filesystem": ("_StorageInfo",),
    }  # fmt: skip
    for module, members in classes.items():
        for member in members:
            name = Global(module, member)
            found[name] = partial(Record, name)
    found[Global(f"{_MODULE}.metadata", "_MEM_FORMAT_ENCODING")] = lambda arguments: str(arguments)[:40]
    return found
