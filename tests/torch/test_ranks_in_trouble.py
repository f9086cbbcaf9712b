"""Several processes agree when one is in trouble: nobody waits for ever, nobody trains on alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from safepoint.repository import Repository

_SCRIPT = """
import json, os, signal, sys
import torch, torch.distributed as dist
import safepoint
from safepoint.repository import Repository

rank, root, trouble = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
if trouble == "full" and rank == 0:
    def full(*arguments, **options):
        raise safepoint.StoreError("the disk is full")
    Repository.commit = full
checkpoint = safepoint.Checkpoint(model=torch.nn.Linear(2, 2))
manager = safepoint.CheckpointManager(checkpoint, f"{root}/run", signals=["SIGTERM"])
steps, error = [], ""
try:
    for step in manager.steps(20):
        dist.all_reduce(torch.ones(1))
        if trouble == "signal" and rank == 1 and step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        manager.save()
        steps.append(step)
    manager.close()
except safepoint.SafepointError as problem:
    error = type(problem).__name__
print(json.dumps([steps, error]), flush=True)
os._exit(0)
"""


def run(root: Path, trouble: str) -> list[tuple[list[int], str]]:
    command = [sys.executable, "-c", _SCRIPT]
    processes = [
        subprocess.Popen([*command, str(rank), str(root), trouble], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        return [tuple(json.loads(process.communicate(timeout=60)[0])) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_a_save_that_fails_on_the_first_process_stops_both(tmp_path: Path) -> None:
    (first, error), (second, other) = run(tmp_path, "full")
    assert (error, other) == ("StoreError", "ConflictError")
    assert len(first) == len(second) < 20


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    (first, error), (second, other) = run(tmp_path, "signal")
    assert (error, other) == ("", "")
    assert first == second == [0, 1, 2, 3, 4]
    assert Repository(tmp_path / "run").resolve().step == 4
