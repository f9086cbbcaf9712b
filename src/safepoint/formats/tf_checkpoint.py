"""TensorFlow's checkpoints: an index of tensors and shards of their bytes; and the variables of a SavedModel.

The graph of a SavedModel is a program and is never looked at beyond its names. Checksums are compared whenever a tensor
is read as a whole. Source: `tensor_bundle.proto`, `util/tensor_bundle`, `lib/strings/ordered_code`, TensorFlow 2.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from safepoint.errors import CorruptionError, NotFoundError, UnsupportedError
from safepoint.formats.contents import Contents, check_inside, checked_shape
from safepoint.formats.crc32c import masked_crc32c
from safepoint.formats.cursor import Cursor
from safepoint.formats.files import File, Folder
from safepoint.formats.protobuf import Message
from safepoint.formats.sstable import entries
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, dtype_of
from safepoint.tree.leaves import Bytes

KIND = "tensorflow"
STATE = "checkpoint"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_STRING = 7
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip
"""TensorFlow's number of a dtype → its name."""
_MAX_TEXT_BYTES = 16 << 20
_MAX_SHARDS = 100_000
_PATH = re.compile(r'^model_checkpoint_path: "([^"\\]+)"$', re.MULTILINE)


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of the index: where it is, or which boxes it is made of."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    crc: int
    slices: tuple[tuple[tuple[int, int], ...], ...]


def newest_prefix(folder: Path) -> Path | None:
    """The index of the checkpoint that a folder's state file names, or of its only one; None: no such folder.

    Raises:
        CorruptionError: the state file names something elsewhere.
    """
    state = folder / STATE
    if state.is_file():
        found = _PATH.search(File(state).head(1 << 20).decode("utf-8", "replace"))
        if found is not None:
            name = found[1]
            if name.startswith(f"{folder.absolute()}/"):
                name = Path(name).name
            if "/" in name or name in {".", ".."}:
                raise CorruptionError(f"{state} names a checkpoint elsewhere", file=str(state), found=name[:80])
            return folder / f"{name}.index"
    indices = sorted(folder.glob("*.index"))
    return indices[0] if len(indices) == 1 and list(folder.glob("*.data-?????-of-?????")) else None


def read(file: File, *, title: str = "TensorFlow checkpoint", metadata: Mapping[str, Any] | None = None) -> Contents:
    """The contents of the checkpoint whose index is `file`; its shards lie beside it.

    Raises:
        CorruptionError: the index is damaged, or what it names is not in the shards.
        NotFoundError: a shard is missing.
        UnsupportedError: written by a big-endian machine.
    """
    table = dict(entries(file))
    num_shards = _header(table.pop(b"", b""), file.path)
    path = Path(file.path)
    folder, prefix = Folder(path.parent), path.name.removesuffix(".index")
    index = {key: _entry(value, file.path) for key, value in table.items()}
    used = sorted({entry.shard for entry in index.values() if not entry.slices})
    if used and used[-1] >= num_shards:
        raise CorruptionError(f"{file.path} names shard {used[-1]} of {num_shards}", file=file.path)
    shards = {number: _open_shard(folder, prefix, number, num_shards) for number in used}
    for entry in index.values():
        if not entry.slices:
            check_inside(shards[entry.shard], entry.offset, entry.num_bytes)
    leaves: dict[str, Leaf] = {}
    left_out: dict[str, str] = {}
    for key, entry in index.items():
        name = key.decode("utf-8", "replace")
        if key.startswith(b"\0") or name == _GRAPH:  # part of a partitioned tensor; the graph of Python objects
            continue
        if entry.dtype == _STRING:
            leaves |= _texts(name, entry, shards, file.path)
        elif entry.dtype not in DTYPES:
            left_out[name] = f"dtype {entry.dtype}"
        else:
            leaves[name] = _tensor(key, entry, index, shards, file.path)
    found: dict[str, Any] = {"shards": num_shards, **(metadata or {})}
    if left_out:
        found["not_read"] = left_out
    return Contents(
        KIND, title, "TensorFlow", str(path)[: -len(".index")], StateTree(leaves), found, (file, *shards.values())
    )


def read_saved_model(folder: Path) -> Contents:
    """The variables of a SavedModel; its graph is not run, and not looked at beyond names.

    Raises:
        As `read`.
    """
    graph = Folder(folder).open("saved_model.pb")
    try:
        metadata = _names_of(Message(graph.read, 0, graph.num_bytes, file=graph.path))
    finally:
        graph.close()
    if not (folder / "variables" / "variables.index").exists():
        title = "SavedModel without variables"
        return Contents("saved_model", title, "TensorFlow", str(folder), StateTree({}), metadata, ())
    index = Folder(folder).open("variables/variables.index")
    found = read(index, title="SavedModel", metadata=metadata)
    return Contents("saved_model", "SavedModel", "TensorFlow", str(folder), found.tree, found.metadata, found.files)


def _names_of(model: Message) -> dict[str, Any]:
    """Tags, version and signatures."""
    found: dict[str, Any] = {"tags": [], "tensorflow": "", "signatures": []}
    for graph_field in model.fields():
        if graph_field.number != 2:
            continue
        graph = model.inner(graph_field)
        for field in graph.fields():
            if field.number == 1:
                info = graph.inner(field)
                for item in info.fields():
                    if item.number == 4:
                        found["tags"].append(info.text(item)[:200])
                    elif item.number == 5:
                        found["tensorflow"] = info.text(item)[:200]
            elif field.number == 5:
                signature = graph.inner(field)
                found["signatures"] += [signature.text(item)[:200] for item in signature.fields() if item.number == 1]
    return found


def _open_shard(folder: Folder, prefix: str, number: int, num_shards: int) -> File:
    try:
        return folder.open(f"{prefix}.data-{number:05d}-of-{num_shards:05d}")
    except NotFoundError as error:
        raise NotFoundError(
            error.message, expected=error.expected, hint="copy all its files, not the index alone"
        ) from error


def _header(data: bytes, file: str) -> int:
    message = Message.of(data, file=file)
    fields = {field.number: field.value for field in message.fields()}
    if fields.get(2, 0) != 0:
        raise UnsupportedError(f"{file} was written by a big-endian machine", hint="save it again elsewhere")
    shards = fields.get(1, 0)
    if not 1 <= shards <= _MAX_SHARDS:
        raise CorruptionError(f"{file} has {shards} shards", file=file, expected="1 to 100,000")
    return shards


def _entry(data: bytes, file: str) -> _Entry:
    message = Message.of(data, file=file)
    numbers = {field.number: field.value for field in message.fields() if not field.is_bytes}
    sizes: list[int] = []
    slices: list[tuple[tuple[int, int], ...]] = []
    for field in message.fields():
        if field.number == 2:
            shape = message.inner(field)
            dims = [shape.inner(dim) for dim in shape.fields() if dim.number == 2]
            sizes += [next((f.signed for f in dim.fields() if f.number == 1), 0) for dim in dims]
        elif field.number == 7:
            box = message.inner(field)
            slices.append(tuple(_extent(box.inner(extent)) for extent in box.fields() if extent.number == 1))
    return _Entry(
        numbers.get(1, 0),
        checked_shape(sizes, file=file, name="a tensor"),
        numbers.get(3, 0),
        numbers.get(4, 0),
        numbers.get(5, 0),
        numbers.get(6, 0),
        tuple(slices),
    )


def _extent(message: Message) -> tuple[int, int]:
    """(start, length); length -1 is all of it."""
    numbers = {field.number: field.signed for field in message.fields()}
    return numbers.get(1, 0), numbers.get(2, -1)


def _tensor(key: bytes, entry: _Entry, index: Mapping[bytes, _Entry], shards: Mapping[int, File], file: str) -> Tensor:
    name = key.decode("utf-8", "replace")
    spec = TensorSpec(entry.shape, DTYPES[entry.dtype])
    if entry.slices:
        return _partitioned(key, spec, entry, index, shards, file)
    if entry.num_bytes != spec.num_bytes:
        raise CorruptionError(
            f"{file} is damaged: {name[:80]} is {spec} in {entry.num_bytes} bytes", file=file, name=name
        )
    shard = shards[entry.shard]
    return Tensor(
        spec,
        partial(_read_whole, shard, entry, name),
        read_range=lambda start, stop: shard.array(entry.offset + start, stop - start),
    )


def _read_whole(shard: File, entry: _Entry, name: str) -> Bytes:
    data = shard.array(entry.offset, entry.num_bytes)
    found = masked_crc32c(data)
    if found != entry.crc:
        raise CorruptionError(
            f"{name} is damaged in {shard.path}",
            file=shard.path,
            name=name,
            expected=f"CRC {entry.crc:08x}",
            found=f"{found:08x}",
        )
    return data


def _partitioned(
    key: bytes, spec: TensorSpec, entry: _Entry, index: Mapping[bytes, _Entry], shards: Mapping[int, File], file: str
) -> Tensor:
    """A tensor of a partitioned variable: boxes that make it up, each an entry of its own."""
    name = key.decode("utf-8", "replace")
    boxes = []
    for box in entry.slices:
        part = index.get(slice_key(key, box))
        resolved = [
            (0, size) if length < 0 else (start, length) for (start, length), size in zip(box, spec.shape, strict=False)
        ]
        inside = all(0 <= start <= start + n <= size for (start, n), size in zip(resolved, spec.shape, strict=False))
        if part is None or part.slices or part.dtype != entry.dtype or len(box) != len(spec.shape) or not inside:
            raise CorruptionError(f"{file} is damaged: part {box} of {name[:80]}", file=file, name=name)
        part_spec = TensorSpec(tuple(n for _, n in resolved), spec.dtype)
        if part.num_bytes != part_spec.num_bytes:
            raise CorruptionError(
                f"{file} is damaged: part {box} of {name[:80]} has another size", file=file, name=name
            )
        boxes.append((resolved, part_spec, part))
    if sum(part_spec.num_elements for _, part_spec, _ in boxes) != spec.num_elements:
        raise CorruptionError(f"{file} is damaged: the parts of {name[:80]} do not make it up", file=file, name=name)

    def read_all() -> Bytes:
        out = np.empty(spec.shape, dtype_of(spec.dtype))
        for resolved, part_spec, part in boxes:
            data = _read_whole(shards[part.shard], part, name).view(out.dtype).reshape(part_spec.shape)
            out[tuple(slice(start, start + n) for start, n in resolved)] = data
        return out.reshape(-1).view(np.uint8)

    return Tensor(spec, read_all)


def slice_key(name: bytes, box: tuple[tuple[int, int], ...]) -> bytes:
    """The key of a part: an encoding whose order is that of the names and numbers in it."""
    escaped = name.replace(b"\xff", b"\xff\0").replace(b"\0", b"\0\xff") if b"\xff" not in name else None
    if escaped is None:
        escaped = b"".join({0: b"\0\xff", 255: b"\xff\0"}.get(byte, bytes([byte])) for byte in name)
    count = len(box)
    length = (count.bit_length() + 7) // 8
    head = b"\0" + escaped + b"\0\1" + bytes([length]) + count.to_bytes(length, "big")
    return head + b"".join(_signed(start) + _signed(size) for start, size in box)


def _signed(value: int) -> bytes:
    """A number of 64 bits in as few bytes as keep its order: the leading bits say how many."""
    positive = ~value if value < 0 else value
    length = max(1, -(-(positive.bit_length() + 1) // 7))
    header = ((0xFFFF << (16 - length)) & 0xFFFF) if length <= 16 else 0
    data = bytearray(value.to_bytes(max(length, 2), "big", signed=True)[-max(length, 2) :])
    if length == 1:
        return bytes([(data[1] ^ (header >> 8)) & 0xFF])
    data[0] ^= header >> 8
    data[1] ^= header & 0xFF
    return bytes(data)


def _texts(name: str, entry: _Entry, shards: Mapping[int, File], file: str) -> dict[str, Leaf]:
    """Text, which is no tensor: values, one for each element."""
    count = math.prod(entry.shape)
    if entry.slices or entry.num_bytes > _MAX_TEXT_BYTES or count > entry.num_bytes:
        raise CorruptionError(f"{file} is damaged: {name[:80]} is {count} texts in {entry.num_bytes} bytes", file=file)
    data = shards[entry.shard].read(entry.offset, entry.num_bytes)
    cursor = Cursor(lambda start, length: data[start : start + length], 0, len(data), file=file)
    lengths = [cursor.varint() for _ in range(count)]
    numbers = np.array(lengths, np.uint64) if max(lengths, default=0) >> 32 else np.array(lengths, np.uint32)
    stored = cursor.take(4)
    texts = [cursor.take(length) for length in lengths]
    whole = numbers.view(np.uint8), np.frombuffer(stored, np.uint8), np.frombuffer(b"".join(texts), np.uint8)
    if masked_crc32c(np.concatenate(whole)) != entry.crc or masked_crc32c(whole[0]) != int.from_bytes(stored, "little"):
        raise CorruptionError(f"{name[:80]} is damaged in {file}", file=file, name=name, expected="its checksum")
    if not entry.shape:
        return {name: texts[0]}
    return {f"{name}/{position}": text for position, text in enumerate(texts)}
