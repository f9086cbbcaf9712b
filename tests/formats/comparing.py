"""Comparing what safepoint reads with what a framework reads, and proof that reading imports none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROBE = """
import json, sys, zlib
import safepoint
out = {}
for path in sys.argv[1:]:
    with safepoint.open(path) as tensors:
        out[path] = {name: [str(t.spec), zlib.crc32(t.numpy().tobytes())] for name, t in tensors.items()}
late = {"torch", "tensorflow", "keras", "jax", "jaxlib", "onnx", "gguf", "safetensors", "google"}
print(json.dumps({"late": sorted(late & set(sys.modules)), "out": out}))
"""


def read_apart(*paths: Path) -> dict[str, dict[str, list[Any]]]:
    """Name → spec and checksum of every tensor, as a process reads them that has imported no framework."""
    done = subprocess.run([sys.executable, "-c", PROBE, *map(str, paths)], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["late"] == []
    found: dict[str, dict[str, list[Any]]] = document["out"]
    return found


def assert_same(tensors: Any, expected: Mapping[str, np.ndarray]) -> None:
    """Every name, shape, dtype and bit."""
    assert sorted(tensors) == sorted(expected)
    for name, array in expected.items():
        found = tensors[name].numpy()
        assert found.shape == array.shape, name
        assert found.dtype == array.dtype, name
        assert found.tobytes() == array.tobytes(), name
        if array.ndim:
            assert tensors[name][1:].tobytes() == array[1:].tobytes(), name
