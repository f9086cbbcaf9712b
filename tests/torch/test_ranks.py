"""Bytes between the processes of plain data parallelism, in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safepoint.adapters.torch import ranks

# What is tested is the exchange: a process ends at once, before gloo's own threads are taken down by the interpreter's
# exit, where they sometimes abort it when the peer has gone.
PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from safepoint.adapters import Scope
from safepoint.adapters import torch as adapter
from safepoint.adapters.torch import ranks

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
assert ranks.world() == (rank, 2)
assert ranks.gather(b"x" * rank) == [b"", b"x"]
assert ranks.gather(b"") == [b"", b""]
assert ranks.gather(bytes([rank]) * (1 << 20)) == [b"\\0" * (1 << 20), b"\\1" * (1 << 20)]
assert ranks.broadcast(b"from zero" if rank == 0 else b"ignored, and longer") == b"from zero"
assert ranks.broadcast(b"" if rank == 0 else b"ignored") == b""
ranks.barrier()
torch.manual_seed(rank)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2)))
tree = adapter.to_tree(model, Scope())
assert list(tree.leaves) == ["0.weight", "0.bias"], list(tree.leaves)
assert [name for name, _ in adapter.owners(model)] == ["0.weight", "0.bias"]
parts = ranks.gather(tree.tensors["0.weight"].read().tobytes())
assert parts[0] == parts[1]
optimizer = torch.optim.Adam(model.parameters())
model(torch.full((3, 2), float(rank))).sum().backward()
optimizer.step()
state = adapter.to_tree(optimizer, Scope({id(p): f"model/{n}" for n, p in adapter.owners(model)}))
parts = ranks.gather(state.tensors["model/0.weight/exp_avg"].read().tobytes())
assert parts[0] == parts[1]
ranks.barrier()
print("done", flush=True)
os._exit(0)
"""


def test_two_processes_exchange_bytes(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error", str(script)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def test_one_process_needs_no_group() -> None:
    assert ranks.world() == (0, 1)
    assert ranks.gather(b"mine") == [b"mine"]
    assert ranks.broadcast(b"mine") == b"mine"
    ranks.barrier()
