"""Arrays over several local devices are saved whole and restored onto the live sharding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_sharded_arrays_come_back_on_the_live_sharding(tmp_path: Path) -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("sharded.py")
    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
