"""Writes `.npz` as `numpy.savez` does: each tensor a `.npy` member. Source: `numpy/lib/_format_impl.py`, NumPy 2.4."""

from __future__ import annotations

import itertools

from safepoint.formats.writing.content import Content, check_dtypes, refuse_name
from safepoint.formats.writing.output import Output
from safepoint.formats.writing.zip_file import Zip, check_member_name
from safepoint.tree import TensorSpec, dtype_of

TITLE = "NumPy"
_KNOWN = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128",
})  # fmt: skip
_ALIGNMENT = 64


def check(content: Content) -> None:
    """Whether everything has a place.

    Raises:
        UnsupportedError: a dtype or a name has none.
    """
    check_dtypes(content, _KNOWN, TITLE)
    folded: set[str] = set()
    for name in content.tensors:
        check_member_name(f"{name}.npy", TITLE)
        if name.casefold() in folded:
            raise refuse_name(name, TITLE, "another differs from it in case alone")
        folded.add(name.casefold())


def write(content: Content, out: Output) -> None:
    """Write all tensors; values have no place here."""
    archive = Zip(out, TITLE)
    for name, tensor in content.tensors.items():
        head = _head(tensor.spec)
        archive.add(f"{name}.npy", len(head) + tensor.spec.num_bytes, itertools.chain([head], tensor.pieces()))
    archive.finish()


def _head(spec: TensorSpec) -> bytes:
    shape = f"({spec.shape[0]},)" if len(spec.shape) == 1 else f"({', '.join(map(str, spec.shape))})"
    text = f"{{'descr': '{dtype_of(spec.dtype).str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(10 + len(text) + 1) // _ALIGNMENT) * _ALIGNMENT - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
