"""Writes PyTorch's `.pt`: a zip file of storages, and a pickle that is composed here, opcode by opcode.

Invariant: no object is pickled. The pickle names `torch._utils._rebuild_tensor_v2` (v3 for dtypes without a storage
class), storages and `OrderedDict`, which `torch.load(weights_only=True)` reads, and nothing else. Source:
`torch/serialization.py` and `torch/_weights_only_unpickler.py` of PyTorch 2.13; `pickletools` of CPython.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from safepoint.formats.writing.content import Content, check_dtypes
from safepoint.formats.writing.output import Output
from safepoint.formats.writing.zip_file import Zip
from safepoint.tree import Branch, Node, TensorSpec, Value

TITLE = "PyTorch"
_FOLDER = "archive"
_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}  # fmt: skip
_UNTYPED = frozenset({
    "uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2",
})  # fmt: skip


def check(content: Content) -> None:
    """Whether everything has a place.

    Raises:
        UnsupportedError: a dtype has none.
    """
    check_dtypes(content, _STORAGES.keys() | _UNTYPED, TITLE)


def write(content: Content, out: Output) -> None:
    """Write all of it, put together as its skeleton says."""
    archive = Zip(out, TITLE)
    keys = {name: index for index, name in enumerate(content.tensors)}
    leaves = {name: (index, content.tensors[name].spec) for name, index in keys.items()} | dict(content.values)
    pickle = b"\x80\x02" + _item(content.skeleton, leaves) + b"."
    _add(archive, "data.pkl", pickle)
    _add(archive, "byteorder", b"little")
    for name, index in keys.items():
        tensor = content.tensors[name]
        archive.add(f"{_FOLDER}/data/{index}", tensor.spec.num_bytes, tensor.pieces())
    _add(archive, "version", b"3\n")
    archive.finish()


def _add(archive: Zip, name: str, data: bytes) -> None:
    archive.add(f"{_FOLDER}/{name}", len(data), [data])


def _item(node: Node, leaves: Mapping[str, Any]) -> bytes:
    """A container, a tensor as (number, spec), or a plain value."""
    if isinstance(node, Branch):
        children = [_item(child, leaves) for child in node.children]
        if node.kind == "dict":
            return b"}(" + b"".join(map(bytes.__add__, map(_value, node.keys), children)) + b"u"
        return (b"](" if node.kind == "list" else b"(") + b"".join(children) + (b"e" if node.kind == "list" else b"t")
    leaf = leaves[node.name]
    return b"".join(_tensor(*leaf)) if isinstance(leaf, tuple) else _value(leaf)


def _tensor(index: int, spec: TensorSpec) -> Iterator[bytes]:
    """`_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)`; v3 has the dtype behind that."""
    typed = spec.dtype in _STORAGES
    yield _name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    storage = _name("torch", _STORAGES[spec.dtype]) if typed else _name("torch.storage", "UntypedStorage")
    count = spec.num_elements if typed else spec.num_bytes
    yield b"((" + _text("storage") + storage + _text(str(index)) + _text("cpu") + _integer(count) + b"tQ"
    yield _integer(0) + _sizes(spec.shape) + _sizes(_strides(spec.shape)) + b"\x89"
    yield _name("collections", "OrderedDict") + b")R"
    yield (b"" if typed else _name("torch", spec.dtype)) + b"tR"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _sizes(sizes: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, sizes)) + b"t"


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _value(value: Value) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, complex):
        return _name("builtins", "complex") + b"(" + _value(value.real) + _value(value.imag) + b"tR"
    if isinstance(value, bytes):  # as protocol 2 has it, which weights_only reads
        return _name("_codecs", "encode") + b"(" + _text(value.decode("latin-1")) + _text("latin1") + b"tR"
    return _text(value)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    length = (value.bit_length() + 8) // 8
    data = value.to_bytes(length, "little", signed=True)
    return (b"\x8a" + bytes([length]) if length < 256 else b"\x8b" + struct.pack("<i", length)) + data
