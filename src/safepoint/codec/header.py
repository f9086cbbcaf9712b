"""Safetensors headers: built for our packs and model files, parsed strictly from anyone's.

Source: the safetensors format, https://github.com/huggingface/safetensors#format: 8 bytes little-endian header length,
a JSON object, then the tensors without gaps; `data_offsets` count from the end of the header.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, final

import msgspec

from safepoint.codec.strict_json import parse_json
from safepoint.errors import CorruptionError
from safepoint.limits import MAX_DIMENSION, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS
from safepoint.tree import DTYPES

_ITEMSIZE = {d.safetensors: d.itemsize for d in DTYPES.values() if d.safetensors}
_NAMES = {d.safetensors: d.name for d in DTYPES.values() if d.safetensors}


@final
class Entry(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a safetensors file.

    Attributes:
        name: its key in the header.
        dtype: safetensors' word for it (`F32`).
        shape: of the tensor.
        start: first byte, counted from the end of the header.
        stop: the byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype_name(self) -> str:
        """The dtype's name in safepoint."""
        return _NAMES[self.dtype]


class Header(NamedTuple):
    """A parsed header: entries in file order, `__metadata__`, and where the data starts in the file."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    data_start: int


class _EntryDocument(msgspec.Struct, frozen=True, gc=False):
    """An entry as it stands in a header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def build_header(entries: Iterable[Entry], metadata: Mapping[str, str], *, size: int | None = None) -> bytes:
    """The header with its length prefix, padded with spaces to `size` bytes (default: to a multiple of 8).

    Raises:
        ValueError: it does not fit in `size`.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in entries:
        table[entry.name] = _EntryDocument(entry.dtype, entry.shape, (entry.start, entry.stop))
    text = msgspec.json.encode(table)
    size = 8 + -(-len(text) // 8) * 8 if size is None else size
    if len(text) + 8 > size:
        raise ValueError(f"header needs {len(text) + 8} bytes, {size} were reserved")
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


def read_header(read: Callable[[int, int], bytes], file_bytes: int, *, file: str) -> Header:
    """The checked header of a safetensors file; nothing is read that cannot be there.

    Args:
        read: (offset, length) → bytes.
        file_bytes: size of the file.
        file: its name.

    Raises:
        CorruptionError: it is no safetensors file, or cut short.
    """
    prefix = read(0, min(8, file_bytes))
    text = read(8, header_length(prefix, file=file, file_bytes=file_bytes))
    return parse_header(prefix, text, file=file, file_bytes=file_bytes)


def parse_header(prefix: bytes, text: bytes, *, file: str, file_bytes: int) -> Header:
    """Check and parse a header: `prefix` is the file's first 8 bytes, `text` the bytes that it announces.

    Everything the format allows and nothing else: no gap, overlap, trailing byte, duplicate key or unknown field.

    Raises:
        CorruptionError: what is wrong, and where.
    """

    def wrong(what: str, **detail: object) -> CorruptionError:
        return CorruptionError(f"{file} is not a valid safetensors file: {what}", file=file, **detail)  # type: ignore[arg-type]

    length = header_length(prefix, file=file, file_bytes=file_bytes)
    if len(text) != length or not text.startswith(b"{"):
        raise wrong("its header must be a JSON object")
    table = _parse_json(text, wrong)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise wrong("__metadata__ must map strings to strings")
    if len(table) > MAX_TENSORS:
        raise wrong(f"it has more than {MAX_TENSORS:,} entries", found=len(table))
    entries = sorted((_parse_entry(name, raw, wrong) for name, raw in table.items()), key=lambda e: (e.start, e.stop))
    position = 0
    for entry in entries:
        if entry.start != position:
            kind = "overlap" if entry.start < position else "are not covered"
            raise wrong(f"bytes {min(entry.start, position)}-{max(entry.start, position)} {kind}", name=entry.name)
        position = entry.stop
    if 8 + length + position != file_bytes:
        raise wrong("its size is wrong", expected=f"{8 + length + position} bytes", found=f"{file_bytes} bytes")
    return Header(tuple(entries), metadata, 8 + length)


def header_length(prefix: bytes, *, file: str, file_bytes: int) -> int:
    """The length that the first 8 bytes announce, checked against the file's size before anything is read.

    Raises:
        CorruptionError: it cannot be right.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
        raise CorruptionError(
            f"{file} is not a safetensors file, or cut short",
            file=file,
            expected=f"a header of 2 to {max(0, min(MAX_HEADER_BYTES, file_bytes - 8))} bytes",
            found=f"{length} bytes announced in a file of {file_bytes}",
        )
    return length


def _parse_json(text: bytes, wrong: Any) -> dict[str, Any]:
    stripped = text.rstrip(b" ")
    try:
        table = parse_json(stripped)
    except (ValueError, RecursionError) as error:
        raise wrong("its header is not JSON", found=error) from error
    if not isinstance(table, dict) or not stripped.endswith(b"}"):
        raise wrong("its header must be a JSON object, padded with spaces")
    return table


def _parse_entry(name: str, raw: Any, wrong: Any) -> Entry:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("an entry must have dtype, shape and data_offsets", name=name)
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEMSIZE:
        raise wrong(f"unknown dtype {str(dtype)[:20]!r}", name=name)
    if not _are_counts(shape) or len(shape) > MAX_RANK or any(n > MAX_DIMENSION for n in shape):
        raise wrong("a shape must be a list of whole numbers", name=name)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets must be two whole numbers in order", name=name)
    expected = math.prod(shape) * _ITEMSIZE[dtype]
    if offsets[1] - offsets[0] != expected:
        raise wrong(f"shape {shape} of {dtype} needs {expected} bytes", name=name, found=offsets[1] - offsets[0])
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
