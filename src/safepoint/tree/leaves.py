"""Leaves of a state tree: tensors, which know how to read their bytes, and plain Python values."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeGuard, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from safepoint.errors import UnsupportedError
from safepoint.tree.dtypes import DTYPES, dtype_name, dtype_of

_set = msgspec.structs.force_setattr
_BYTE = np.dtype(np.uint8)
_MOST_BYTES = (1 << 63) - 1  # NumPy's, of the axes that are not empty

Bytes: TypeAlias = NDArray[np.uint8]
Value: TypeAlias = bool | int | float | complex | str | bytes | None


# msgspec's structs are made ten times faster than dataclasses; a restore of 600 tensors makes 5,000 of these.
@final
class TensorSpec(msgspec.Struct, frozen=True, gc=False):
    """Shape and dtype of a tensor.

    Attributes:
        shape: elements along each axis, outermost first; `()` for a scalar.
        dtype: a key of `DTYPES`.
        num_elements: that the shape makes.
        num_bytes: of those.
    """

    shape: tuple[int, ...]
    dtype: str
    num_elements: int = -1  # worked out once: a save asks each tensor five times
    num_bytes: int = -1

    def __post_init__(self) -> None:
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            raise UnsupportedError(f"unknown dtype {self.dtype!r}")
        num_elements = math.prod(self.shape)
        if num_elements == 0 and math.prod(size or 1 for size in self.shape) * dtype.itemsize > _MOST_BYTES:
            raise UnsupportedError("an empty tensor of a shape that no array can have", found=str(self.shape)[:80])
        _set(self, "num_elements", num_elements)
        _set(self, "num_bytes", num_elements * dtype.itemsize)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Transfer(Protocol):
    """How the bytes of a tensor on an accelerator come to host memory while the device goes on computing."""

    address: tuple[int, int]
    """Where the tensor lies in the device's memory, and how many bytes: tensors that share it are tied."""

    def start(self, target: Bytes) -> Callable[[], None]:
        """Begin to copy the content of this moment to host memory; what is returned waits until it is there."""
        ...


@final
class Tensor(msgspec.Struct, frozen=True, eq=False):
    """A tensor leaf: its spec, a way to its bytes and, for live tensors, a way to replace them.

    Attributes:
        spec: shape and dtype.
        read: returns `uint8[spec.num_bytes]`, the C-order little-endian bytes. They may alias live memory, so they
            hold only until the live object changes; the caller must not write to them.
        write: replaces the live tensor's content by such bytes (copied before it returns); None where the
            tensor is not live.
        memory: writable `uint8[spec.num_bytes]` that *is* the tensor, where it has such memory: filling it is the
            same as `write`, and tensors that share it are tied.
        frozen: True where the bytes never change: `read` gives the same later, or raises.
        read_range: returns the bytes from `start` to `stop` without reading all the others, as `read` does; None where
            only the whole can be read.
        transfer: how to copy it beside what its device computes; None on the host.
    """

    spec: TensorSpec
    read: Callable[[], Bytes]
    write: Callable[[Bytes], None] | None = None
    memory: Bytes | None = None
    frozen: bool = False
    read_range: Callable[[int, int], Bytes] | None = None
    transfer: Transfer | None = None

    @staticmethod
    def of(array: NDArray[Any], *, live: bool = True) -> Tensor:
        """The tensor leaf of a NumPy array: strided, transposed and big-endian arrays too.

        Args:
            array: holds the content, or a copy of it.
            live: False where it is a copy, so that writing to it would change nothing.

        Raises:
            UnsupportedError: the array holds objects, text, records or times.
        """
        spec = TensorSpec(array.shape, dtype_name(array.dtype))
        flags = array.flags
        if not live:
            return Tensor(spec, lambda: bytes_of(array))
        if flags.c_contiguous and flags.writeable and array.dtype.isnative:  # nearly always, and quick
            memory = _flat(array) if type(array) is np.ndarray else bytes_of(array)
            return Tensor(spec, lambda: memory, partial(np.copyto, memory), memory)

        def write(data: Bytes) -> None:
            np.copyto(array, data.view(dtype_of(spec.dtype)).reshape(spec.shape), casting="equiv")

        return Tensor(spec, lambda: bytes_of(array), write if flags.writeable else None)

    @staticmethod
    def of_bytes(data: Bytes, spec: TensorSpec) -> Tensor:
        """A tensor leaf over bytes that the caller keeps unchanged: `data` is `uint8[spec.num_bytes]`."""
        return Tensor(spec, lambda: data, memory=data if data.flags.writeable else None)

    @property
    def address(self) -> tuple[int, int] | None:
        """Where a live tensor's memory is and how many bytes; None where it has none of its own that can be told.

        Tensors with the same address are tied.
        """
        if self.transfer is not None:
            return self.transfer.address
        return None if self.memory is None else address_of(self.memory)

    def part(self, start: int, stop: int) -> Bytes:
        """The bytes from `start` to `stop`; reads no others where it can."""
        return self.read()[start:stop] if self.read_range is None else self.read_range(start, stop)

    def numpy(self) -> NDArray[Any]:
        """The tensor as an array of `spec.shape`; it may alias live memory."""
        return self.read().view(dtype_of(self.spec.dtype)).reshape(self.spec.shape)


Leaf: TypeAlias = Tensor | Value


def is_value(obj: object) -> TypeGuard[Value]:
    """Whether `obj` is exactly a plain value: subclasses (enums, NumPy scalars) would come back changed."""
    return obj is None or type(obj) in {bool, int, float, complex, str, bytes}


def bytes_of(array: NDArray[Any]) -> Bytes:
    """The C-order little-endian bytes of `array` as `uint8[nbytes]`: a view where it is dense, else a copy."""
    if not array.dtype.isnative or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return _flat(np.ascontiguousarray(array))


def _flat(dense: NDArray[Any]) -> Bytes:
    return (dense if dense.ndim == 1 else dense.reshape(-1)).view(_BYTE)


def address_of(memory: Bytes) -> tuple[int, int] | None:
    """Where writable memory is and how long; None where it is empty. A quarter of what `ndarray.ctypes` takes."""
    size = len(memory)
    return (ctypes.addressof(ctypes.c_char.from_buffer(memory)), size) if size else None  # type: ignore[arg-type]


def describe(leaf: Leaf) -> str:
    """A leaf in a few words, for messages and tables: `float32[10, 4]`, or a value cut to 40 characters."""
    if isinstance(leaf, Tensor):
        return str(leaf.spec)
    if isinstance(leaf, int) and leaf.bit_length() > 1000:
        return f"an integer of {leaf.bit_length()} bits"  # CPython refuses to spell it
    text = repr(leaf[:60] if isinstance(leaf, str | bytes) else leaf)
    return text if len(text) <= 40 else f"{text[:37]}..."
