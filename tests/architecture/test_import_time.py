"""`import safepoint` imports no framework and nothing that only the command line needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

# A finder that notes what is asked for, so that the test means the same where the frameworks are not installed.
PROBE = """
import importlib.abc, json, sys, time
LATE = {"torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "h5py", "sklearn", "safetensors", "rich", "click"}
class Recorder(importlib.abc.MetaPathFinder):
    asked = set()
    def find_spec(self, name, path=None, target=None):
        self.asked.add(name.partition(".")[0])
start = time.perf_counter()
import numpy
numpy_seconds = time.perf_counter() - start
sys.meta_path.insert(0, Recorder())
start = time.perf_counter()
import safepoint
seconds = time.perf_counter() - start
print(json.dumps({"late": sorted(Recorder.asked & LATE), "numpy": numpy_seconds, "safepoint": seconds}))
"""


def test_importing_safepoint_imports_no_framework(record_property: Callable[[str, object], None]) -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    record_property("numpy_import_seconds", found["numpy"])
    record_property("safepoint_import_seconds_beyond_numpy", found["safepoint"])
    assert found["late"] == []
