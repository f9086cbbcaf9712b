"""With nothing but the base dependencies, the library imports and the command line answers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONAL = ["torch", "tensorflow", "keras", "jax", "jaxlib", "h5py", "matplotlib", "sklearn", "safetensors"]


def test_the_check_environment_has_no_frameworks() -> None:
    installed = [name for name in OPTIONAL if importlib.util.find_spec(name) is not None]
    if Path(sys.prefix).name == ".venv-check":  # elsewhere the tests below hide them
        assert installed == []


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing anything optional fails, installed or not."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('hidden by a test', name={name!r})")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def run(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_safepoint_imports(bare: dict[str, str]) -> None:
    run([sys.executable, "-W", "error", "-c", "import safepoint; safepoint.Checkpoint"], bare)


def test_the_command_line_answers(bare: dict[str, str]) -> None:
    program = str(Path(sys.executable).parent / "safepoint")
    assert "Usage: safepoint" in run([program, "--help"], bare)
    assert importlib.metadata.version("safepoint") in run([program, "--version"], bare)
