from __future__ import annotations

from pathlib import Path

import torch
from tests.torch_models.models import in_new_process
from torch import nn

import safepoint

LOAD_AND_RUN = """
import sys, torch, safepoint
model = safepoint.load_model(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
print(model.training)
"""


def test_a_nested_sequential_runs_the_same_in_a_process_that_never_built_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    safepoint.save_model(model.eval(), tmp_path / "model")
    torch.save(x, tmp_path / "x")
    assert in_new_process(LOAD_AND_RUN, tmp_path / "model", tmp_path / "x", tmp_path / "y") == "False\n"
    assert torch.equal(torch.load(tmp_path / "y"), model(x))
