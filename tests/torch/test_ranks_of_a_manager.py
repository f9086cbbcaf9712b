"""Plain DDP through the manager: the first process commits, all restore, random and loader state are per rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from safepoint.repository import Repository

# It ends at once: gloo's own threads sometimes abort an interpreter that exits after its peer.
_SCRIPT = """
import json, os, random, sys
import torch, torch.distributed as dist
import safepoint

rank, root, stop = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous-{sys.argv[4]}", rank=rank, world_size=2)
torch.manual_seed(100 + rank); random.seed(100 + rank)
model = torch.nn.Linear(4, 1)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
net = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters())
data = torch.utils.data.TensorDataset(torch.arange(64.0).reshape(16, 4) + rank)
loader = safepoint.Resumable(torch.utils.data.DataLoader(data, batch_size=2, shuffle=True), seed=rank)
history = {"draws": []}
checkpoint = safepoint.Checkpoint(model=net, optimizer=optimizer, loader=loader)
manager = safepoint.CheckpointManager(checkpoint, f"{root}/{sys.argv[5]}")
seen = []
batches = None
for step in manager.steps(12):
    batches = batches or iter(loader)
    try:
        (x,) = next(batches)
    except StopIteration:
        batches = iter(loader)
        (x,) = next(batches)
    draw = torch.rand(()).item() + random.random()
    seen.append([x.sum().item(), draw])
    (net(x).mean() * (1 + draw)).backward(); optimizer.step(); optimizer.zero_grad()
    manager.save(metrics={"loss": draw})
    if step == stop:
        break
manager.close()
print(json.dumps({"seen": seen, "weights": [p.tolist() for p in model.parameters()]}), flush=True)
dist.barrier()
os._exit(0)
"""


def run(root: Path, name: str, *, stop: int = -1, attempt: int = 0) -> list[dict[str, list[object]]]:
    command = [sys.executable, "-c", _SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(root), str(stop), f"{name}{attempt}", name], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output) for output in outputs]


def test_two_processes_resume_as_if_they_had_never_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")
    first = run(tmp_path, "cut", stop=5)
    second = run(tmp_path, "cut", attempt=1)
    for rank in range(2):
        assert first[rank]["seen"] + second[rank]["seen"] == whole[rank]["seen"]
        assert second[rank]["weights"] == whole[rank]["weights"]
    assert whole[0]["seen"] != whole[1]["seen"], "each process has its own data and random numbers"
    assert whole[0]["weights"] == whole[1]["weights"]
    repository = Repository(tmp_path / "cut")
    names = repository.manifest(repository.resolve()).tree.names()
    assert {"ranks/1/random", "ranks/1/loader", "random", "loader", "model"} <= set(names)
    assert len(repository.history()[0]) == 12, "only the first process commits"
