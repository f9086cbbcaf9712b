"""Every way to a PyTorch model or its state, under the audit hook: see `tests/audit.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.attacks.watching import loads_safely, read_all
from tests.torch_models.test_transformers import bert
from torch import nn

import safepoint


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def saved(kind: str, folder: Path) -> Path:
    path = folder / "model"
    if kind == "class":
        safepoint.save_model(network(), path)
    elif kind == "graph":
        safepoint.save_model(network().eval(), path, example_inputs=(torch.ones(3, 4),))
    else:
        safepoint.save_model(transformers.BertModel(bert()), path)
    return path


@pytest.mark.parametrize("kind", ["class", "graph", "transformers"])
def test_a_whole_model(kind: str, tmp_path: Path) -> None:
    path = saved(kind, tmp_path)
    ways: list[Callable[[], object]] = [
        lambda: safepoint.load_model(path), lambda: safepoint.load_model(path, mmap=True), lambda: read_all(path)
    ]  # fmt: skip
    for way in ways:
        loads_safely(tmp_path, way)
    if kind == "graph":
        model = safepoint.load_model(path)
        loads_safely(tmp_path, lambda: (read_all(path), model(torch.ones(3, 4))))  # running it runs nothing of a file


def test_restore_and_resume(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    checkpoint = safepoint.Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)
    checkpoint.save(tmp_path / "run")

    def resume() -> int:
        with safepoint.CheckpointManager(checkpoint, tmp_path / "run", keep=[]) as manager:
            return manager.resume()

    loads_safely(tmp_path, lambda: checkpoint.restore(tmp_path / "run"))
    loads_safely(tmp_path, resume)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_of_torch_save(options: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    torch.save(model.state_dict(), tmp_path / "a.pt", **options)
    loads_safely(tmp_path, lambda: read_all(tmp_path / "a.pt"))
    loads_safely(tmp_path, lambda: safepoint.Checkpoint(model=model).restore(tmp_path / "a.pt"))
