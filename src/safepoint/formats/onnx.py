"""ONNX: the initializers and large constants of a model's graphs, in the file or beside it; none of them is run.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; external data as in `docs/ExternalData.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.contents import Contents, checked_shape, stretch
from safepoint.formats.files import File, Folder
from safepoint.formats.protobuf import Field, Message
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, dtype_of
from safepoint.tree.leaves import Bytes

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
_PACKED = {21: "uint4", 22: "int4", 23: "float4e2m1", 25: "uint2", 26: "int2"}
_STRING = 8
_RAW, _FLOAT, _INT32, _INT64, _DOUBLE, _UINT64 = 9, 4, 5, 7, 10, 11
# What is listed as numbers, by field: floating-point ones of less than 32 bits as their bits. Source: onnx.proto3.
_LISTED = {
    _FLOAT: {"float32", "complex64"}, _DOUBLE: {"float64", "complex128"}, _INT64: {"int64"},
    _UINT64: {"uint32", "uint64"}, _INT32: {
        "int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn",
        "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    },
}  # fmt: skip
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}
_MAX_INITIALIZERS = 1_000_000
_MAX_DEPTH = 16  # of graphs in graphs: branches and loops
_LEAST_CONSTANT_BYTES = 1024  # smaller ones are axes and limits, not weights


@final
@dataclass(slots=True)
class _Described:
    """What a `TensorProto` says, its bytes not read."""

    dims: list[int] = field(default_factory=list)
    dtype: int = 0
    name: str = ""
    data: list[Field] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


def looks_like(file: File) -> bool:
    """Whether a file begins like a model: a small version, then fields of `ModelProto` that end with the file."""
    try:
        for position, item in enumerate(Message(file.read, 0, file.num_bytes, file=file.path).fields()):
            if position == 0 and (item.number, item.is_bytes) != (1, False):
                return False
            if position == 0 and not 1 <= item.value <= 100:
                return False
            if item.number == 7 and item.is_bytes:
                return position > 0
            if item.number not in range(1, 30) or position > 100:
                return False
    except CorruptionError:
        return False
    return False


def read(file: File) -> Contents:
    """The contents of an ONNX model: initializers by name, constants by what they are called where they are used.

    Those of a branch or loop have the name of its node before theirs.

    Raises:
        CorruptionError: it is damaged, or names data outside of its folder.
        NotFoundError: external data is missing.
        UnsupportedError: an initializer in a way that is not read.
    """
    model = Message(file.read, 0, file.num_bytes, file=file.path)
    facts: dict[str, Any] = {}
    found = _Tensors(file)
    for item in model.fields():
        if item.number in _FACTS:
            facts[_FACTS[item.number]] = model.text(item)[:1000] if item.is_bytes else item.value
        elif item.number == 8 and item.is_bytes:
            facts.setdefault("opsets", {}).update(_opset(model.inner(item)))
        elif item.number == 7:
            facts["graph"], facts["nodes"] = found.add_graph(model.inner(item), "", 0)
    facts.setdefault("nodes", 0)
    if found.packed:
        facts["packed"] = found.packed
    files = (file, *found.beside.values())
    return Contents("onnx", "ONNX model", "ONNX", file.path, StateTree(found.leaves), facts, files)


@final
class _Tensors:
    """The tensors of a model's graphs as they are met."""

    def __init__(self, file: File) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.packed: dict[str, str] = {}
        self.beside: dict[str, File] = {}
        self._file = file
        self._folder = Folder(Path(file.path).parent)

    def add_graph(self, graph: Message, prefix: str, depth: int) -> tuple[str, int]:
        """Take a graph's tensors; returns its name and how many nodes it has."""
        if depth > _MAX_DEPTH:
            raise CorruptionError(f"{self._file.path} is damaged: graphs nested too deep", file=self._file.path)
        name, nodes = "", 0
        for part in graph.fields():
            if part.number == 1:
                nodes += 1
                if part.stop - part.start > _LEAST_CONSTANT_BYTES:
                    self._add_node(graph.inner(part), prefix, depth)
            elif part.number == 2:
                name = graph.text(part)[:1000]
            elif part.number == 5:
                self._add(graph.inner(part), prefix)
        return name, nodes

    def _add_node(self, node: Message, prefix: str, depth: int) -> None:
        output = name = kind = ""
        attributes = []
        for part in node.fields():
            if part.number == 2:
                output = output or node.text(part)[:1000]
            elif part.number == 3:
                name = node.text(part)[:1000]
            elif part.number == 4:
                kind = node.text(part)
            elif part.number == 5:
                attributes.append(node.inner(part))
        for attribute in attributes:
            parts = {part.number: part for part in attribute.fields()}
            called = attribute.text(parts[1])[:1000] if 1 in parts else ""
            if kind == "Constant" and 5 in parts and parts[5].stop - parts[5].start > _LEAST_CONSTANT_BYTES:
                self._add(attribute.inner(parts[5]), prefix, output)
            elif 6 in parts:
                self.add_graph(attribute.inner(parts[6]), f"{prefix}{name or output}/{called}/", depth + 1)

    def _add(self, message: Message, prefix: str, output: str | None = None) -> None:
        described = _describe(message)
        described.name = prefix + (described.name if output is None else output)
        if described.name in self.leaves or len(self.leaves) >= _MAX_INITIALIZERS:
            raise _wrong(self._file.path, described.name, "stands twice, or is one of too many")
        self.leaves[described.name] = _leaf(described, self._file, self._folder, self.beside, self.packed)


_FACTS = {1: "ir_version", 2: "producer", 3: "producer_version", 4: "domain", 5: "model_version"}


def _opset(message: Message) -> Iterator[tuple[str, int]]:
    domain, version = "", 0
    for item in message.fields():
        if item.number == 1:
            domain = message.text(item)[:200]
        elif item.number == 2:
            version = item.value
    yield domain or "ai.onnx", version


def _describe(message: Message) -> _Described:
    found = _Described()
    for item in message.fields():
        if item.number == 1:
            found.dims += message.numbers(item)
        elif item.number == 2:
            found.dtype = item.value
        elif item.number == 8:
            found.name = message.text(item)
        elif item.number in {_RAW, _FLOAT, _INT32, _INT64, _DOUBLE, _UINT64, 6}:
            found.data.append(item)
        elif item.number == 13:
            entry = message.inner(item)
            texts = {part.number: entry.text(part) for part in entry.fields()}
            found.external[texts.get(1, "")] = texts.get(2, "")
        elif item.number == 14:
            found.is_external = item.value == 1
        elif item.number == 3:
            raise UnsupportedError(f"{message.file} has a tensor in segments", hint="save it again, whole")
    return found


def _leaf(described: _Described, file: File, folder: Folder, beside: dict[str, File], packed: dict[str, str]) -> Leaf:
    name, path = described.name, file.path
    shape = checked_shape(described.dims, file=path, name=name)
    if described.dtype == _STRING:
        return f"<text {list(shape)}>"
    if described.dtype in _PACKED:  # less than a byte an element: kept as the bytes that they are
        packed[name] = f"{_PACKED[described.dtype]}{list(shape)}"
    elif described.dtype not in _DTYPES:
        raise UnsupportedError(f"{name[:80]!r} in {path} is of ONNX type {described.dtype}")
    if described.is_external:
        return _external(described, shape, folder, beside, path)
    kinds = {item.number for item in described.data}
    if kinds == {_RAW} and len(described.data) == 1:
        (raw,) = described.data
        spec = _spec(described, shape, raw.stop - raw.start)
        if spec.num_bytes != raw.stop - raw.start:
            raise _wrong(path, name, f"{spec} in {raw.stop - raw.start} bytes")
        return stretch(file, raw.start, spec)
    spec = _spec(described, shape, 0)
    if described.dtype in _PACKED or len(kinds) > 1 or (not kinds and spec.num_elements):
        raise _wrong(path, name, "has no data, or twice")
    if any(spec.dtype not in _LISTED.get(kind, ()) for kind in kinds):
        raise _wrong(path, name, f"has {spec.dtype} in a field of other numbers")
    least = 4 if kinds & {_FLOAT} else 8 if kinds & {_DOUBLE} else 1
    if spec.num_elements * least > sum(item.stop - item.start if item.is_bytes else 8 for item in described.data):
        raise _wrong(path, name, f"{spec} in fewer bytes")
    return Tensor(spec, partial(_decode, described, spec, file))


def _spec(described: _Described, shape: tuple[int, ...], num_bytes: int) -> TensorSpec:
    if described.dtype in _PACKED:
        return TensorSpec((num_bytes,), "uint8")
    return TensorSpec(shape, _DTYPES[described.dtype])


def _decode(described: _Described, spec: TensorSpec, file: File) -> Bytes:
    """Elements that are listed as numbers: floating-point ones as they are, the others one by one."""
    if not described.data:
        return np.empty(0, np.uint8)
    message = Message(file.read, 0, file.num_bytes, file=file.path)
    (kind,) = {item.number for item in described.data}
    dtype = dtype_of(spec.dtype)
    if kind in {_FLOAT, _DOUBLE}:
        item_dtype = np.dtype("<f4" if kind == _FLOAT else "<f8")
        parts = [_fixed(message, item, item_dtype, described.name) for item in described.data]
        data = np.concatenate(parts) if parts else np.empty(0, item_dtype)
        if spec.dtype.startswith("complex"):
            if len(data) % 2:
                raise _wrong(file.path, described.name, "has half a complex number")
            data = data.view(dtype)
    else:
        numbers = np.array([n for item in described.data for n in message.numbers(item)], np.int64)
        # 16-bit floats and 8-bit ones are kept as their bits in whole numbers.
        bits = np.dtype(f"u{dtype.itemsize}")
        data = numbers.astype(bits).view(dtype) if dtype.kind not in "iub" else numbers.astype(dtype)
    if len(data) != spec.num_elements:
        raise _wrong(file.path, described.name, f"{spec} in {len(data)} numbers")
    return np.ascontiguousarray(data.astype(dtype, copy=False)).view(np.uint8)


def _fixed(message: Message, item: Field, dtype: np.dtype[Any], name: str) -> Any:
    """Floating-point numbers of a field: one, or packed ones."""
    length = item.stop - item.start if item.is_bytes else item.width
    if length % dtype.itemsize or (not item.is_bytes and length != dtype.itemsize):
        raise _wrong(message.file, name, f"has numbers of {dtype.itemsize} bytes in {length}")
    data = message.read(item.start, length) if item.is_bytes else item.value.to_bytes(length, "little")
    return np.frombuffer(data, dtype)


def _external(
    described: _Described, shape: tuple[int, ...], folder: Folder, beside: dict[str, File], path: str
) -> Tensor:
    entries, name = described.external, described.name
    if not entries.keys() <= _EXTERNAL_KEYS or "location" not in entries or described.data:
        raise _wrong(path, name, f"external data of another kind: {sorted(entries)[:6]}")
    location = entries["location"]
    if location not in beside:
        beside[location] = folder.open(location)
    source = beside[location]
    offset = _count(entries.get("offset", "0"), path, name)
    length = _count(entries.get("length", str(max(0, source.num_bytes - offset))), path, name)
    spec = _spec(described, shape, length)
    if spec.num_bytes != length:
        raise _wrong(path, name, f"{spec} in {length} bytes")
    return stretch(source, offset, spec)


def _count(text: str, path: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _wrong(path, name, f"an offset or length of {text[:40]!r}")
    return int(text)


def _wrong(path: str, name: str, what: str) -> CorruptionError:
    return CorruptionError(f"{path} is damaged: {name[:80]!r} {what}", file=path, name=name)
