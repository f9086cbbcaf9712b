"""Wrapped modules: one set of names for plain, compiled and data-parallel ones; sharded ones are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import safepoint

distributed = torch.distributed


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A group of one process: wrappers want one."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


def plain(seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_part(model: Any) -> Any:
    model[0] = compiled(model[0])
    return model


def compiled_itself(model: Any) -> Any:
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": compiled,
    "a part compiled": compiled_part,
    "compiled by its method": compiled_itself,
    "data parallel": nn.parallel.DistributedDataParallel,
    "data parallel, then compiled": lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
    "compiled, then data parallel": lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
}
DATA = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def train(model: Any, optimizer: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(DATA).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_are_clean_and_each_restores_into_the_other(wrap: Any, tmp_path: Path) -> None:
    model, wrapped = plain(0), wrap(plain(1))
    optimizer, other = torch.optim.AdamW(model.parameters()), torch.optim.AdamW(wrapped.parameters())
    train(model, optimizer, 2)
    one = safepoint.Checkpoint(model=model, optimizer=optimizer)
    two = safepoint.Checkpoint(model=wrapped, optimizer=other)
    one.save(tmp_path / "plain")
    two.restore(tmp_path / "plain")
    assert list(two.capture().leaves) == list(one.capture().leaves)
    assert train(wrapped, other, 2) == train(model, optimizer, 2)
    two.save(tmp_path / "wrapped")
    train(model, optimizer, 1)
    one.restore(tmp_path / "wrapped")
    assert train(model, optimizer, 2) == train(wrapped, other, 2)


@pytest.mark.usefixtures("alone")
def test_sharded_modules_and_tensors_are_refused_by_name(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    model = fully_shard(plain(), mesh=mesh)
    safepoint.Checkpoint(model=plain()).save(tmp_path)
    for call in (safepoint.Checkpoint(model=model).save, safepoint.Checkpoint(model=model).restore):
        with pytest.raises(safepoint.UnsupportedError, match=r"0\.0\.weight.*DTensor.*until the distributed work"):
            call(tmp_path)
    tensor = distribute_tensor(torch.ones(2, 2), mesh, [Shard(0)])
    with pytest.raises(safepoint.UnsupportedError, match=r"'x'.*DTensor"):
        safepoint.Checkpoint(state={"x": tensor}).save(tmp_path)
    assert len(safepoint.Repository(tmp_path).snapshots) == 1
