"""A `keras.Variable` as a live leaf, on every backend.

Invariant: reads are views where the backend has host memory; writes never convert a dtype.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from safepoint.adapters.containers import kind_of
from safepoint.errors import UnsupportedError
from safepoint.tree import Tensor, TensorSpec, bytes_of, dtype_of
from safepoint.tree.leaves import Bytes


def leaf_of(variable: Any, name: str = "") -> Tensor:
    """The live leaf of a variable, Keras' or the backend's own.

    Raises:
        UnsupportedError: it has no value yet, or its values are spread over devices.
    """
    value = variable._value if isinstance(variable, keras.Variable) else variable
    if value is None:  # created in a stateless scope, or given away to a running JAX epoch
        raise UnsupportedError(
            f"{name or variable.path!r} has no value at this moment",
            hint="save between training steps, or through safepoint.KerasCheckpoint while fit() runs",
        )
    kind = kind_of(value)
    if kind is not None and not kind.immutable:
        return kind.to_leaf(value)  # TensorFlow and torch: their own adapters know their memory
    return _immutable(variable, name)


def spec_of(variable: Any) -> TensorSpec:
    """Shape and dtype, also of a variable that has no value."""
    dtype = variable._dtype if isinstance(variable, keras.Variable) else variable.dtype
    return TensorSpec(tuple(int(n) for n in variable.shape), str(keras.backend.standardize_dtype(dtype)))


def planned_leaf(variable: Any) -> Tensor:
    """A leaf of a variable that will exist; it has no content to read."""
    spec = spec_of(variable)
    return Tensor(spec, lambda: np.zeros(spec.num_bytes, np.uint8))


def _immutable(variable: Any, name: str) -> Tensor:
    """JAX: the value is replaced, never changed, so a view of it is also a snapshot."""
    if not getattr(variable._value, "is_fully_addressable", True):
        raise UnsupportedError(
            f"{name or variable.path!r} is spread over several processes", hint="sharded tensors are not supported yet"
        )
    spec = spec_of(variable)

    def write(data: Bytes) -> None:
        # A copy: JAX may keep the NumPy memory it is given, and the caller reuses it.
        variable.assign(data.view(dtype_of(spec.dtype)).reshape(spec.shape).copy())

    return Tensor(spec, lambda: bytes_of(np.asarray(variable._value)), write)


def counter_leaf(live: Tensor, saved: Tensor) -> Tensor:
    """A leaf that takes `saved`'s integer dtype for `live`: step counts and seeds have another one on each backend.

    Invariant: at most two elements; values keep their low bits, which is what the backends themselves do with seeds.
    """

    def write(data: Bytes) -> None:
        assert live.write is not None
        source = data.view(dtype_of(saved.spec.dtype)).reshape(saved.spec.shape)
        live.write(bytes_of(source.astype(dtype_of(live.spec.dtype))))

    return Tensor(saved.spec, lambda: bytes_of(live.numpy().astype(dtype_of(saved.spec.dtype))), write)


def is_counter(live: Tensor, saved: object) -> bool:
    """Whether only the width of a small integer differs."""
    if not isinstance(saved, Tensor) or live.spec == saved.spec or live.spec.shape != saved.spec.shape:
        return False
    return live.spec.num_elements <= 2 and all("int" in tensor.spec.dtype for tensor in (live, saved))
