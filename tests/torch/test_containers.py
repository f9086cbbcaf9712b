"""Plain containers take what PyTorch's objects saved."""

from __future__ import annotations

from pathlib import Path

import torch

import safepoint


def test_what_a_module_saved_is_read_into_a_dictionary(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    safepoint.Checkpoint(model=module).save(tmp_path)
    tensors = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    weight = tensors["weight"]
    checkpoint = safepoint.Checkpoint(model=tensors)
    checkpoint.restore(tmp_path)
    assert checkpoint["model"]["weight"] is weight
    assert torch.equal(weight, module.weight)
    assert torch.equal(tensors["bias"], module.bias)
