"""Large variables that cost nothing until they get their content: zeros in memory that nobody has touched.

Invariant: only the initial content differs; every variable exists, with its own shape, dtype and name, and holds zeros.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src import backend

from safepoint.adapters.keras.patches import Patch, patched
from safepoint.adapters.keras.tensors import adopt_array
from safepoint.errors import UnsupportedError
from safepoint.store import aligned_buffer
from safepoint.tree import DTYPES, dtype_of

_WORTH_BYTES = 64 << 10  # below, the initializer is cheaper than a mapping, and its content is as good as any
_active = threading.local()


@contextmanager
def placeholders() -> Iterator[None]:
    """Within, variables made in this thread start as zeros instead of what their initializer would draw.

    A 138M-parameter model spends three seconds on random numbers and zeroed slots that the file overwrites.
    """
    _active.depth = getattr(_active, "depth", 0) + 1
    try:
        # Where this Keras makes variables in another way, building is slower and nothing else changes.
        with patched(_patches(), missing=lambda _: None):
            yield
    finally:
        _active.depth -= 1


def _patches() -> tuple[Patch, ...]:
    return (Patch(backend.Variable, "_initialize_with_initializer", _cheaper),)


def _cheaper(original: Callable[..., None]) -> Callable[..., None]:
    def initialize(variable: Any, initializer: Callable[..., Any]) -> None:
        if getattr(_active, "depth", 0) and getattr(variable, "_layout", None) is None:
            initializer = _zeros_instead_of(initializer)
        original(variable, initializer)

    return initialize


def _zeros_instead_of(initializer: Callable[..., Any]) -> Callable[..., Any]:
    def initial(shape: Any, dtype: Any = None) -> Any:
        name = keras.backend.standardize_dtype(dtype)
        num_bytes = math.prod(shape) * DTYPES[name].itemsize if name in DTYPES else 0
        if num_bytes < _WORTH_BYTES:
            return initializer(shape, dtype=dtype)
        try:
            memory = aligned_buffer(num_bytes)
        except (OSError, ValueError, OverflowError) as error:
            raise UnsupportedError(
                f"a variable of shape {tuple(shape)} ({num_bytes:,} bytes) does not fit into memory"
            ) from error
        return adopt_array(memory.view(dtype_of(name)).reshape(shape))

    return initial
