"""GGUF: llama.cpp's file of one model. Quantized tensors are kept as the bytes that they are, their type beside them.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3; sizes of the types as in `ggml.c`.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.contents import Contents, checked_shape, stretch
from safepoint.formats.cursor import Cursor
from safepoint.formats.files import File
from safepoint.tree import Leaf, StateTree, TensorSpec

MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_MAX_AXES = 4
_MAX_NAME_BYTES = 1024
_MAX_ELEMENTS = 16_000_000
_MAX_DEPTH = 4
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
# Type → its name, elements a block, bytes a block.
_QUANTIZED = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read(file: File) -> Contents:
    """The contents of a GGUF file.

    Raises:
        CorruptionError: counts, sizes or offsets that the file cannot hold.
        UnsupportedError: another version, a big-endian file, or a type of tensors that is not known.
    """
    cursor = Cursor(file.read, 4, file.num_bytes, file=file.path)
    version = cursor.number(_U32)
    if version not in {2, 3}:
        raise UnsupportedError(f"{file.path} is GGUF version {version}", expected="version 2 or 3, little-endian")
    num_tensors, num_values = cursor.number(_U64), cursor.number(_U64)
    _check_count(cursor, num_tensors, 24)
    _check_count(cursor, num_values, 13)
    values: dict[str, Any] = {}
    for _ in range(num_values):
        key = _text(cursor, _MAX_NAME_BYTES)
        if key in values:
            raise _wrong(cursor, f"{key[:80]!r} stands twice")
        values[key] = _value(cursor, cursor.number(_U32), 0)
    infos = [_info(cursor) for _ in range(num_tensors)]
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _wrong(cursor, f"an alignment of {str(alignment)[:40]}")
    start = -(-cursor.position // alignment) * alignment
    leaves: dict[str, Leaf] = {}
    quantized: dict[str, Any] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.offset):
        spec = _spec(info, cursor, quantized)
        if info.name in leaves or info.offset % alignment or info.offset < end:
            raise _wrong(cursor, f"tensor {info.name[:80]!r} overlaps another, or is not aligned")
        end = info.offset + spec.num_bytes
        leaves[info.name] = stretch(file, start + info.offset, spec)
    metadata = {"version": version, "values": values} | ({"quantized": quantized} if quantized else {})
    tree = StateTree({info.name: leaves[info.name] for info in infos})
    return Contents("gguf", f"GGUF file, version {version}", "GGML", file.path, tree, metadata, (file,))


def _info(cursor: Cursor) -> _Info:
    name = _text(cursor, _MAX_NAME_BYTES)
    axes = cursor.number(_U32)
    if axes > _MAX_AXES:
        raise _wrong(cursor, f"tensor {name[:80]!r} has {axes} axes")
    sizes = [cursor.number(_U64) for _ in range(axes)]
    shape = checked_shape(sizes[::-1], file=cursor.file, name=name)  # the file counts from the innermost
    return _Info(name, shape, cursor.number(_U32), cursor.number(_U64))


def _spec(info: _Info, cursor: Cursor, quantized: dict[str, Any]) -> TensorSpec:
    plain = _PLAIN.get(info.kind)
    if plain is not None:
        return TensorSpec(info.shape, plain)
    if info.kind not in _QUANTIZED:
        raise UnsupportedError(f"tensor {info.name[:80]!r} in {cursor.file} is of ggml type {info.kind}")
    word, elements, num_bytes = _QUANTIZED[info.kind]
    if not info.shape or info.shape[-1] % elements:
        raise _wrong(cursor, f"tensor {info.name[:80]!r} of {word} has rows of {info.shape[-1:]} elements")
    quantized[info.name] = {"type": word, "shape": list(info.shape)}
    return TensorSpec((*info.shape[:-1], info.shape[-1] // elements * num_bytes), "uint8")


def _value(cursor: Cursor, kind: int, depth: int) -> Any:
    if kind == _STRING:
        return _text(cursor, cursor.stop - cursor.position)
    if kind in _SCALARS:
        return cursor.number(struct.Struct(_SCALARS[kind]))
    if kind != _ARRAY or depth > _MAX_DEPTH:
        raise _wrong(cursor, f"a value of type {kind}, {depth} levels deep")
    inner, count = cursor.number(_U32), cursor.number(_U64)
    if inner not in _SCALARS:
        _check_count(cursor, count, 8 if inner == _STRING else 12)
        return [_value(cursor, inner, depth + 1) for _ in range(count)]
    layout = _SCALARS[inner]
    size = struct.calcsize(layout)
    _check_count(cursor, count, size)
    dtype = np.dtype(bool if inner == 7 else layout)
    return np.frombuffer(cursor.take(count * size), dtype).tolist()


def _text(cursor: Cursor, at_most: int) -> str:
    length = cursor.number(_U64)
    if length > at_most:
        raise _wrong(cursor, f"a text of {length} bytes")
    return cursor.take(length).decode("utf-8", "replace")


def _check_count(cursor: Cursor, count: int, least_bytes: int) -> None:
    """Whether as many things can be in what is left of the file."""
    if count > _MAX_ELEMENTS or count * least_bytes > cursor.stop - cursor.position:
        raise _wrong(cursor, f"{count} things in {cursor.stop - cursor.position} bytes")


def _wrong(cursor: Cursor, what: str) -> CorruptionError:
    return CorruptionError(f"{cursor.file} is no sound GGUF file: {what}", file=cursor.file)


def num_elements(metadata: dict[str, Any], name: str, spec: TensorSpec) -> int:
    """Elements of a tensor: of a quantized one, those that its blocks stand for."""
    shape = metadata.get("quantized", {}).get(name, {}).get("shape", spec.shape)
    return math.prod(shape)
