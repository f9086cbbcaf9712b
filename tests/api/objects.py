"""Small objects with a state, for tests of the API without any framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class Counter:
    """An opaque object: its state goes through its own methods."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads += 1
        self.count = state["count"]


class Refusing(Counter):
    """Accepts its own state and refuses any other."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["count"] != self.count:
            raise KeyError("not today")


def arrays(seed: int = 0) -> dict[str, Any]:
    """A nested dictionary of arrays and values, different for each seed."""
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((4, 3), dtype=np.float32),
        "bias": rng.standard_normal(3, dtype=np.float32),
        "history": [float(x) for x in rng.standard_normal(2)],
        "epoch": seed,
    }


def same(left: Any, right: Any) -> bool:
    """Exactly equal, types included."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return type(left) is type(right) and left == right


def write_strangers_file(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file of `float64` arrays as another tool writes it: no metadata, and none of our code."""
    entries, data = {}, b""
    for name, array in tensors.items():
        start, data = len(data), data + array.astype("<f8").tobytes()
        entries[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [start, len(data)]}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
