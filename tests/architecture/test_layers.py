"""The contracts in pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "lint-imports")
    command = [program, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(source), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


def test_layers_hold() -> None:
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr


VIOLATIONS = {
    "a layer imports upwards": ("tree/names.py", "import safepoint.store.local"),
    "the store imports the codec": ("store/local.py", "from safepoint.codec import blocks"),
    "the repository imports an adapter": ("repository/commit.py", "import safepoint.adapters.torch"),
    "the command line imports an integration": ("cli/show.py", "import safepoint.integrations.keras"),
    "an adapter imports another": ("adapters/torch.py", "import safepoint.adapters.keras"),
    "an adapter imports another's framework": ("adapters/keras.py", "import tensorflow"),
    "the api imports torch": ("api/model.py", "import torch"),
    "the api imports keras in a function": ("api/model.py", "def f():\n    import keras.layers"),
    "the tree imports jax": ("tree/names.py", "from jax import numpy"),
    "an adapter imports flax just to ask": ("adapters/torch.py", "from flax import nnx"),
    "the formats import the repository": ("formats/contents.py", "import safepoint.repository.commit"),
    "a format imports an adapter": ("formats/safetensors.py", "import safepoint.adapters.torch"),
    "a format imports what recognises it": ("formats/safetensors.py", "import safepoint.formats.recognise"),
    "a module is in no layer": ("extra/__init__.py", ""),
}
MODULES = [
    "__init__.py", "errors.py", "tree/names.py", "codec/blocks.py", "store/local.py", "repository/commit.py",
    "adapters/protocol.py", "adapters/torch.py", "adapters/keras.py", "api/model.py", "cli/show.py",
    "integrations/keras.py", "testing/faults.py", "formats/contents.py", "formats/recognise.py",
    "formats/safetensors.py",
]  # fmt: skip


def make_package(root: Path, extra: dict[str, str]) -> None:
    for module in [*MODULES, *extra]:
        path = root / "safepoint" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(extra.get(module, ""))


def test_a_package_without_violations_passes(tmp_path: Path) -> None:
    make_package(tmp_path, {"adapters/torch.py": "import torch", "integrations/keras.py": "import keras, torch"})
    result = lint_imports(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("module", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_is_found(tmp_path: Path, module: str, code: str) -> None:
    make_package(tmp_path, {module: code})
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout
