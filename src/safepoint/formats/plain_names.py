"""Names in pickles that stand for plain values: what is made of each, by functions of ours.

Invariant: every name here makes data. None is imported; a name that is not here is refused by whoever reads the pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from safepoint.formats.contents import checked_shape
from safepoint.formats.pickles import Build, Global, Pairs, Record
from safepoint.tree import NUMPY_NUMBERS, Tensor, dtype_name

_BUILTINS = ("builtins", "__builtin__")
_INERT = {"list", "dict", "int", "float", "set", "str", "tuple"}


def inert_builtin(name: Global) -> bool:
    """Whether a name is a type that a `defaultdict` may be made with."""
    return name.module in _BUILTINS and name.name in _INERT


@final
class NumpyDtype(Record):
    """`numpy.dtype("f8", False, True)` with its state, the byte order."""

    def numpy(self) -> np.dtype[Any]:
        """The dtype.

        Raises:
            ValueError: of objects, records or times.
        """
        text = self.arguments[0]
        if not isinstance(text, str) or not (text == "bool" or NUMPY_NUMBERS.fullmatch(text)):
            raise ValueError(f"arrays of {str(text)[:40]!r} hold no plain numbers")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if order not in {"<", ">", "|", "="}:
            raise ValueError(f"byte order {str(order)[:10]!r}")
        return np.dtype(text if order in {"|", "="} or text == "bool" else order + text.lstrip("<>|="))


@final
class NumpyArray(Record):
    """`numpy._reconstruct(ndarray, (0,), b"b")` with its state: version, shape, dtype, order, bytes."""

    def tensor(self) -> Tensor:
        """The array that it is."""
        _, shape, dtype, fortran, data = self.state
        return array_tensor(data, dtype, shape, "F" if fortran else "C")


def array_tensor(data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
    """An array of bytes that stand in a pickle."""
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise TypeError("no array of numbers")
    sizes = checked_shape(shape, file="a pickle", name="an array")
    array = np.frombuffer(data, dtype.numpy()).reshape(sizes, order="F" if order == "F" else "C")
    dtype_name(array.dtype)
    return Tensor.of(array)


def _ordered(arguments: tuple[Any, ...]) -> Pairs:
    found = Pairs()
    if arguments:
        (items,) = arguments
        if isinstance(items, Pairs):
            return items
        found.pairs = [(key, value) for key, value in items]
    return found


def _default(arguments: tuple[Any, ...]) -> Pairs:
    return _ordered(arguments[1:])


def _listed(arguments: tuple[Any, ...]) -> list[Any]:
    return list(*arguments)


def _encoded(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if encoding not in {"latin1", "latin-1"} or not isinstance(text, str):
        raise ValueError("an encoding that no pickle needs")
    return text.encode("latin-1")


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    if not arguments:
        return b""
    first, *rest = arguments
    if rest:
        return _encoded(arguments)
    if not isinstance(first, bytes):
        raise TypeError("bytes of something else")  # bytes(10**12) takes as much memory
    return first


def _complex(arguments: tuple[Any, ...]) -> complex:
    real, imag = arguments
    return complex(float(real), float(imag))


def _path(arguments: tuple[Any, ...]) -> str:
    return "/".join(str(part)[:1000] for part in arguments[:1000])


def _numpy_scalar(arguments: tuple[Any, ...]) -> Any:
    dtype, data = arguments
    (value,) = np.frombuffer(data, dtype.numpy())
    return value.item()


def _numpy_array(arguments: tuple[Any, ...]) -> Tensor:
    data, dtype, shape, order = arguments
    return array_tensor(data, dtype, shape, order)


def plain_names() -> Mapping[Global, Build]:
    """Name → what is made of it."""
    found: dict[Global, Build] = {
        Global("collections", "OrderedDict"): _ordered,
        Global("collections", "Counter"): _ordered,
        Global("collections", "defaultdict"): _default,
        Global("_codecs", "encode"): _encoded,
        Global("argparse", "Namespace"): lambda arguments: Record(Global("argparse", "Namespace"), arguments),
        Global("numpy", "dtype"): lambda arguments: NumpyDtype(Global("numpy", "dtype"), arguments),
        Global("numpy", "ndarray"): lambda _arguments: None,
    }
    found[Global("pathlib", "Path")] = _path
    for module in _BUILTINS:
        found[Global(module, "set")] = _listed
        found[Global(module, "frozenset")] = _listed
        found[Global(module, "complex")] = _complex
        found[Global(module, "bytearray")] = _bytes
        found[Global(module, "bytes")] = _bytes
    for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        found[Global("pathlib", kind)] = _path
        found[Global("pathlib._local", kind)] = _path
    for core in ("numpy.core", "numpy._core"):
        found[Global(f"{core}.multiarray", "scalar")] = _numpy_scalar
        found[Global(f"{core}.numeric", "_frombuffer")] = _numpy_array
        found[Global(f"{core}.multiarray", "_reconstruct")] = lambda arguments: NumpyArray(
            Global("numpy", "ndarray"), arguments
        )
    return found
