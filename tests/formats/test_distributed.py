"""PyTorch's distributed checkpoints, of one and of several ranks, compared with what was saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

import safepoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_one_process(tmp_path: Path) -> None:
    state = {
        "model": torch.nn.Linear(3, 2).state_dict(),
        "half": torch.arange(6).to(torch.bfloat16).reshape(2, 3),
        "step": 3,
        "nested": {"x": [1, 2.5, "a"]},
    }
    dcp.save(state, checkpoint_id=tmp_path / "ck", no_dist=True)
    with safepoint.open(tmp_path / "ck") as tensors:
        assert (tensors.kind, tensors.framework) == ("distributed", "PyTorch")
        assert np.array_equal(tensors["model/weight"], state["model"]["weight"].numpy())
        assert tensors["half"].spec.dtype == "bfloat16"
        assert tensors["half"].numpy().tobytes() == state["half"].view(torch.uint8).numpy().tobytes()
        assert np.array_equal(tensors["model/weight"][1, :2], state["model"]["weight"].numpy()[1, :2])
        assert tensors.plain["step"] == 3


# It ends at once: gloo's own threads sometimes abort an interpreter that exits after its peers.
RANK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
mesh = init_device_mesh("cpu", (2, 2))
w = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5)
state = {
    "rows": distribute_tensor(w, mesh, [Shard(0), Replicate()]),
    "boxes": distribute_tensor(w, mesh, [Shard(0), Shard(1)]),
    "whole": w.clone(),
}
dcp.save(state, checkpoint_id=f"{folder}/ck")
dist.barrier()
os._exit(0)
"""


def test_four_processes(tmp_path: Path) -> None:
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(4)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0, 0, 0]
    expected = np.arange(35, dtype=np.float32).reshape(7, 5)
    with safepoint.open(tmp_path / "ck") as tensors:
        assert sorted(tensors) == ["boxes", "rows", "whole"]
        for tensor in tensors.values():
            assert np.array_equal(tensor.numpy(), expected)
            assert np.array_equal(tensor[3:, 1:3], expected[3:, 1:3])
        assert len(tensors.metadata["files"]) >= 3
