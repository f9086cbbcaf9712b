"""FORMAT.md is enough: a reader written from it alone gives back what was saved."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.golden.make import HERE, contents, moved_contents
from tests.repository.trees import assert_same, tree_of

from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Repository, write_model_file
from safepoint.tree import DTYPES, StateTree, Tensor, TensorSpec

SCRIPT = HERE.parents[1] / "docs" / "reader.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    specification = importlib.util.spec_from_file_location("reader", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_nothing_of_ours() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 120
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name for n in imports for a in n.names if isinstance(n, ast.Import)}
    names |= {str(n.module) for n in imports if isinstance(n, ast.ImportFrom)}
    assert names <= {"numpy", "ml_dtypes", "xxhash"} | sys.stdlib_module_names


@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_reads_the_golden_repository(reader: ModuleType, number: int) -> None:
    found = reader.read_repository(HERE / "v1", number)
    assert found.pop("model/complex32").tobytes() == bytes(range(8))
    assert_same(found, contents()[number])


@pytest.mark.parametrize("number", [1, 3])
def test_it_finds_blocks_that_were_healed_or_compacted(reader: ModuleType, number: int) -> None:
    assert_same(reader.read_repository(HERE / "v1-moved", number), moved_contents()[number])


def test_it_reads_the_golden_model_file(reader: ModuleType) -> None:
    found, structure = reader.read_model(HERE / "v1.model")
    assert structure == {"class": "golden.Model", "layers": [64, 10]}
    assert found.pop("model/complex32").tobytes() == bytes(range(8))
    expected = {**contents()[0], "optimizer/m": np.arange(3, dtype=np.float32)}
    assert_same(found, {name: expected[name] for name in found})


def test_it_reads_a_fresh_repository_of_large_and_shared_tensors(reader: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = np.resize(rng.integers(0, 255, 1 << 20, np.uint8), 2 * BLOCK_BYTES + 5)
    leaves: dict[str, Any] = {"large": large, "w": rng.standard_normal((7, 9)), "tied": large, "big": 3**500_000}
    leaves |= {"text": "\ud800" * 30_000, "bytes": b"ab" * 50_000, "step": 1}
    repository = Repository(tmp_path / "r")
    repository.commit(tree_of(leaves))
    changed = leaves | {"w": leaves["w"] + 1, "step": 2}
    repository.commit(tree_of(changed))
    assert_same(reader.read_repository(tmp_path / "r"), changed)
    assert_same(reader.read_repository(tmp_path / "r", 0), leaves)


def test_it_reads_every_dtype(reader: ModuleType, tmp_path: Path) -> None:
    data = {name: np.arange(6 * dtype.itemsize, dtype=np.uint8) % 2 for name, dtype in DTYPES.items()}
    tree = StateTree({name: Tensor.of_bytes(x, TensorSpec((2, 3), name)) for name, x in data.items()})
    Repository(tmp_path / "r").commit(tree)
    write_model_file(tmp_path / "m", tree, structure={}, format="test")
    for found in (reader.read_repository(tmp_path / "r"), reader.read_model(tmp_path / "m")[0]):
        assert {name: array.tobytes() for name, array in found.items()} == {n: x.tobytes() for n, x in data.items()}
        assert {array.shape for array in found.values()} == {(2, 3)}


def test_it_finds_damage_and_what_was_pruned(reader: ModuleType, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "r")
    for step in range(2):
        repository.commit(tree_of({"w": np.full(100, step)}))
    repository.delete("0")
    with pytest.raises(ValueError, match="was pruned"):
        reader.read_repository(tmp_path / "r", 0)
    pack = tmp_path / "r" / "packs" / f"{next(iter(repository.manifest(repository.resolve()).packs))}.safetensors"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    with pytest.raises(ValueError, match="w is damaged"):
        reader.read_repository(tmp_path / "r")


def test_it_runs_as_a_script() -> None:
    for path in (HERE / "v1", HERE / "v1.model"):
        result = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=True)
        assert "\t" in result.stdout
