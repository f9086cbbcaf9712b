"""Arrays become tensors of the current backend, without a copy wherever it can be avoided.

Invariant: the caller gives the array up: the tensor owns its memory from then on, and nobody else writes to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras.src import backend
from numpy.typing import NDArray

_ALIGNMENT = 64  # what TensorFlow's and XLA's kernels ask of shared memory; less is copied
_CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def adopt_array(array: NDArray[Any]) -> Any:
    """A tensor with the content of `array`, in the array's own memory where the backend can use it.

    TensorFlow takes a NumPy array through DLPack, in place; the first in-place update of a variable then moves it into
    memory of TensorFlow's own, so nothing that shares the buffer can ever see training. JAX never writes to it.
    """
    if not array.flags.c_contiguous or array.ctypes.data % _ALIGNMENT:
        return backend.convert_to_tensor(np.array(array, order="C"))
    match backend.backend():
        case "tensorflow":
            return _tensorflow(array)
        case "jax":
            import jax

            return jax.device_put(array)
        case "torch":
            return _torch(array)
        case _:
            return backend.convert_to_tensor(array)


def adopt(variable: Any, array: NDArray[Any]) -> None:
    """Give `array`, which has the variable's shape and dtype, to a Keras variable as its content."""
    tensor = adopt_array(array)
    value = getattr(variable, "_value", None)
    if backend.backend() == "torch" and value is not None and value.device == tensor.device:
        value.data = tensor  # assign() would copy into the old memory, page by untouched page
    else:
        variable.assign(tensor)


def _tensorflow(array: NDArray[Any]) -> Any:
    import tensorflow as tf

    if array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    dtype = tf.as_dtype(array.dtype)
    carrier = _CARRIERS.get(array.dtype.itemsize)
    if dtype != tf.bfloat16 or carrier is None:
        return tf.convert_to_tensor(array)
    return tf.bitcast(tf.experimental.dlpack.from_dlpack(array.view(carrier).__dlpack__()), dtype)


def _torch(array: NDArray[Any]) -> Any:
    import torch

    if array.dtype.isbuiltin == 1:
        tensor = torch.from_numpy(array)
    else:
        carrier = _CARRIERS[array.dtype.itemsize]
        words = (
            torch.from_numpy(array.view(carrier)) if array.ndim else torch.from_numpy(array.reshape(1).view(carrier))
        )
        tensor = words.view(getattr(torch, array.dtype.name)).reshape(array.shape)
    return tensor.to(backend.get_device()) if hasattr(backend, "get_device") else tensor
