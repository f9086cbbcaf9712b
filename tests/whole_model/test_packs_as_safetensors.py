"""Packs and model files are what the `safetensors` package says they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Repository, write_model_file
from safepoint.tree import DTYPES, StateTree, Tensor, TensorSpec


def one_of_each() -> StateTree:
    rng = np.random.default_rng(0)
    leaves = {
        f"every/{name}": Tensor.of_bytes(rng.integers(0, 2, 6 * dtype.itemsize, np.uint8), TensorSpec((2, 3), name))
        for name, dtype in DTYPES.items()
    }
    large = np.resize(rng.integers(0, 255, 1 << 20, np.uint8), 2 * BLOCK_BYTES + 3)
    more = {
        "large": large,
        "tied": large,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        'ü"\\': np.ones(3),
    }
    return StateTree(leaves | {name: Tensor.of(array) for name, array in more.items()} | {"text": "x" * 100_000})


def check(path: Path, tree: StateTree) -> None:
    """Every tensor of a dtype that it knows is there under its name, with its bytes; parts are under ours."""
    with safetensors.safe_open(path, "pt") as file:
        names = set(file.keys())
    entries = dict(safetensors.deserialize(path.read_bytes()))
    public = {name for name, tensor in tree.tensors.items() if DTYPES[tensor.spec.dtype].safetensors} - {"tied"}
    assert {name for name in names if not name.startswith("__safepoint__/")} - {"text"} == public
    for name in public:
        tensor = tree.tensors[name]
        assert bytes(entries[name]["data"]) == tensor.read().tobytes(), name
        assert tuple(entries[name]["shape"]) == tensor.spec.shape, name


def test_a_first_pack_is_a_safetensors_file_with_the_tensors_own_names(tmp_path: Path) -> None:
    tree = one_of_each()
    Repository(tmp_path / "r").commit(tree)
    (pack,) = (tmp_path / "r" / "packs").iterdir()
    check(pack, tree)


def test_later_packs_are_safetensors_files_too(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "r")
    tree = one_of_each()
    repository.commit(tree)
    large = tree.tensors["large"].read().copy()
    large[BLOCK_BYTES + 1] ^= 1
    repository.commit(StateTree({**tree.leaves, "large": Tensor.of(large), "tied": Tensor.of(large)}))
    for pack in (tmp_path / "r" / "packs").iterdir():
        with safetensors.safe_open(pack, "np") as file:
            parts = [name for name in list(file.keys()) if name.startswith("__safepoint__/")]
            assert all(file.get_tensor(name).dtype == np.uint8 for name in parts)


def test_a_model_file_is_a_safetensors_file_with_its_metadata(tmp_path: Path) -> None:
    tree = StateTree({name: leaf for name, leaf in one_of_each().leaves.items() if name != "text"})
    write_model_file(tmp_path / "model", tree, structure={"class": "x"}, format="pt")
    check(tmp_path / "model", tree)
    with safetensors.safe_open(tmp_path / "model", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_torch_loads_a_first_pack_as_it_is(tmp_path: Path) -> None:
    model = torch.nn.Linear(5, 3)
    leaves = {name: Tensor.of(parameter.detach().numpy()) for name, parameter in model.named_parameters()}
    Repository(tmp_path / "r").commit(StateTree(leaves))
    (pack,) = (tmp_path / "r" / "packs").iterdir()
    other = torch.nn.Linear(5, 3)
    other.load_state_dict(safetensors.torch.load_file(pack))
    assert torch.equal(other.weight, model.weight)
