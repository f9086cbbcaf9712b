"""Writes safetensors: the header first, then the tensors by falling item size, so that each is aligned without gaps.

Values and what the source said of itself go into `__metadata__`, which holds texts: other values than text as JSON.
"""

from __future__ import annotations

import json

from safepoint.codec import Entry, build_header, encode_value
from safepoint.errors import UnsupportedError
from safepoint.formats.writing.content import Content, check_dtypes, refuse_name
from safepoint.formats.writing.output import Output
from safepoint.limits import MAX_HEADER_BYTES
from safepoint.tree import DTYPES, Value

TITLE = "safetensors"
_KNOWN = {dtype.name: dtype.safetensors for dtype in DTYPES.values() if dtype.safetensors}


def check(content: Content) -> None:
    """Whether everything has a place.

    Raises:
        UnsupportedError: a dtype or a name has none, or the header would be too long.
    """
    check_dtypes(content, _KNOWN, TITLE)
    if "__metadata__" in content.tensors:
        raise refuse_name("__metadata__", TITLE, "it means something else there")
    if len(_header(content)) > MAX_HEADER_BYTES:
        raise UnsupportedError(
            "the header of this safetensors file would be too long",
            expected=f"at most {MAX_HEADER_BYTES:,} bytes",
            hint="leave values out with --select",
        )


def write(content: Content, out: Output) -> None:
    """Write all of it."""
    out.append(_header(content))
    for name in _order(content):
        for piece in content.tensors[name].pieces():
            out.append(piece)


def _order(content: Content) -> list[str]:
    return sorted(content.tensors, key=lambda name: -DTYPES[content.tensors[name].spec.dtype].itemsize)


def _header(content: Content) -> bytes:
    entries: list[Entry] = []
    position = 0
    for name in _order(content):
        spec = content.tensors[name].spec
        stop = position + spec.num_bytes
        entries.append(Entry(name, _KNOWN[spec.dtype] or "", spec.shape, position, stop))
        position = stop
    values = {name: _text(value) for name, value in content.values.items()}
    return build_header(entries, values | dict(content.metadata))


def _text(value: Value) -> str:
    encoded = encode_value(value)
    return encoded if isinstance(encoded, str) else json.dumps(encoded)
