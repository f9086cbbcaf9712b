"""The dtypes a tensor can have: one name each, its size, and its NumPy counterpart.

Invariant: a name here is a name on disk, for ever. Elements are stored one by one in little-endian order;
dtypes narrower than a byte take one byte an element, as `ml_dtypes` lays them out (`*_x2` are packed by torch).
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from safepoint.errors import UnsupportedError


class DType(NamedTuple):
    """What safepoint knows of a dtype.

    Attributes:
        name: its name on disk, NumPy's or `ml_dtypes`' where they have one.
        itemsize: bytes an element.
        numpy: name of the NumPy or `ml_dtypes` dtype, or None where neither has it (bytes only).
        safetensors: its name in a safetensors header, or None (stored as U8 there).
    """

    name: str
    itemsize: int
    numpy: str | None
    safetensors: str | None


# Source: safetensors 0.8 `Dtype`; ml_dtypes 0.6; torch 2.13 `torch.dtype`; TensorFlow 2.21 `tf.dtypes`.
_TABLE = (
    ("bool", 1, "bool", "BOOL"),
    ("int8", 1, "int8", "I8"),
    ("int16", 2, "int16", "I16"),
    ("int32", 4, "int32", "I32"),
    ("int64", 8, "int64", "I64"),
    ("uint8", 1, "uint8", "U8"),
    ("uint16", 2, "uint16", "U16"),
    ("uint32", 4, "uint32", "U32"),
    ("uint64", 8, "uint64", "U64"),
    ("float16", 2, "float16", "F16"),
    ("float32", 4, "float32", "F32"),
    ("float64", 8, "float64", "F64"),
    ("bfloat16", 2, "bfloat16", "BF16"),
    ("complex64", 8, "complex64", "C64"),
    ("complex128", 16, "complex128", None),
    ("complex32", 4, None, None),
    ("float8_e4m3fn", 1, "float8_e4m3fn", "F8_E4M3"),
    ("float8_e5m2", 1, "float8_e5m2", "F8_E5M2"),
    ("float8_e8m0fnu", 1, "float8_e8m0fnu", "F8_E8M0"),
    ("float8_e3m4", 1, "float8_e3m4", None),
    ("float8_e4m3", 1, "float8_e4m3", None),
    ("float8_e4m3b11fnuz", 1, "float8_e4m3b11fnuz", None),
    ("float8_e4m3fnuz", 1, "float8_e4m3fnuz", None),
    ("float8_e5m2fnuz", 1, "float8_e5m2fnuz", None),
    ("float6_e2m3fn", 1, "float6_e2m3fn", None),
    ("float6_e3m2fn", 1, "float6_e3m2fn", None),
    ("float4_e2m1fn", 1, "float4_e2m1fn", None),
    ("float4_e2m1fn_x2", 1, None, None),
    ("int1", 1, "int1", None),
    ("int2", 1, "int2", None),
    ("int4", 1, "int4", None),
    ("uint1", 1, "uint1", None),
    ("uint2", 1, "uint2", None),
    ("uint4", 1, "uint4", None),
)

DTYPES: dict[str, DType] = {row[0]: DType(*row) for row in _TABLE}

_NATIVE = frozenset(name for name in DTYPES if hasattr(np, name) and name != "bool") | {"bool"}

NUMPY_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f(2|4|8|16)|c(8|16|32))")
"""How NumPy writes the dtypes of numbers and truth values in files: in other sizes there are none."""


@cache
def dtype_of(name: str) -> np.dtype[np.generic]:
    """The NumPy dtype called `name`; `uint8` bytes of one element where NumPy has none.

    Raises:
        UnsupportedError: no dtype has that name.
    """
    entry = DTYPES.get(name)
    if entry is None:
        raise UnsupportedError(f"unknown dtype {name!r}", expected=f"one of {', '.join(sorted(DTYPES))}")
    if entry.numpy is None:
        return np.dtype((np.void, entry.itemsize))
    if entry.numpy in _NATIVE:
        return np.dtype(entry.numpy)
    import ml_dtypes  # 20 ms: only when a tensor needs it

    if not hasattr(ml_dtypes, entry.numpy):
        raise UnsupportedError(f"dtype {name!r} needs a newer ml_dtypes", found=ml_dtypes.__version__)
    found: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, entry.numpy))
    return found


@cache
def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """The name on disk of a NumPy dtype, whatever its byte order.

    Raises:
        UnsupportedError: object, string, structured and time dtypes have no bytes safepoint could keep exactly.
    """
    name = dtype.name
    if name not in DTYPES:
        raise UnsupportedError(
            f"arrays of dtype {dtype} cannot be saved",
            expected="numbers or booleans",
            hint="save text as str values or bytes, structured arrays field by field",
        )
    return name
