"""Files to open, made by hand, and a count of the bytes that are read from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from safepoint.tree import DTYPES, Tensor


def safetensors_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file, written from its specification."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, array in tensors.items():
        dtype = DTYPES[Tensor.of(array).spec.dtype].safetensors
        table[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes `preadv` has given since the last call."""
    real = os.preadv
    total = [0]

    def preadv(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        count = real(descriptor, buffers, offset, flags)
        total[0] += count
        return count

    def since() -> int:
        count, total[0] = total[0], 0
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return since
