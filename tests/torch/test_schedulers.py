"""Schedulers, scalers and averages: through `state_dict`, exactly, beside their optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch.saving import put, save, scope
from torch import nn
from torch.optim import SGD, lr_scheduler, swa_utils

import safepoint
from safepoint.adapters import state_dict as opaque
from safepoint.errors import MismatchError


class Rule:
    """A callable with a state, which LambdaLR saves."""

    def __init__(self) -> None:
        self.factor = 0.9

    def __call__(self, epoch: int) -> float:
        return self.factor**epoch


def sequential(optimizer: Any) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 5)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def chained(optimizer: Any) -> Any:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "LambdaLR object": lambda o: lr_scheduler.LambdaLR(o, Rule()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequential,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, cooldown=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "CyclicLR function": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, scale_fn=Rule()),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=4),
}


def make(build: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, build(optimizer)


def train(model: Any, optimizer: Any, scheduler: Any, steps: int) -> list[Any]:
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step(*([loss.item()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        history.append((loss.item(), optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
    return history


def test_every_scheduler_of_torch_is_here() -> None:
    ours = {name.split()[0] for name in SCHEDULERS} | {"LRScheduler", "SWALR"}
    assert set(lr_scheduler.__all__) <= ours


@pytest.mark.filterwarnings("ignore:The verbose parameter", "ignore:Please also save or load the state")
@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("steps_before", [0, 6], ids=["fresh", "in use"])
def test_a_resumed_schedule_is_the_one_that_never_stopped(build: Any, steps_before: int) -> None:
    model, optimizer, scheduler = make(build, 0)
    train(model, optimizer, scheduler, 4)
    saved = save(model), save(optimizer, scope(model=model)), save(scheduler)
    expected = train(model, optimizer, scheduler, 8)
    again, other, follower = make(build, 1)
    train(again, other, follower, steps_before)
    put(saved[0], again)
    put(saved[1], other, scope(model=again))
    put(saved[2], follower)
    assert train(again, other, follower, 8) == expected


def test_milestones_are_replaced_and_not_merged() -> None:
    scheduler = make(lambda o: lr_scheduler.MultiStepLR(o, [50]), 0)[2]
    put(save(make(lambda o: lr_scheduler.MultiStepLR(o, [30, 30]), 0)[2]), scheduler)
    assert scheduler.milestones == {30: 2}
    assert type(scheduler.milestones).__name__ == "Counter"


def test_another_kind_of_schedule_is_refused(tmp_path: Path) -> None:
    model, optimizer, scheduler = make(SCHEDULERS["StepLR"], 0)
    safepoint.Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler).save(tmp_path)
    other = lr_scheduler.CosineAnnealingLR(optimizer, 7)
    before = other.state_dict()
    with pytest.raises(MismatchError, match="scheduler: CosineAnnealingLR cannot take") as caught:
        safepoint.Checkpoint(scheduler=other).restore(tmp_path)
    assert caught.value.found == "the state of a StepLR"
    assert other.state_dict() == before

    class Renamed(lr_scheduler.StepLR): ...

    safepoint.Checkpoint(scheduler=Renamed(optimizer, 5)).restore(tmp_path)


def test_a_lambda_is_the_programs_and_an_object_with_a_state_the_snapshots() -> None:
    """torch leaves plain functions out of the state; what the new program passes goes on from the saved epoch."""
    scheduler = make(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch), 0)[2]
    assert save(scheduler).leaves["lr_lambdas/0"] is None
    faster = make(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.1**epoch), 0)[2]
    put(save(scheduler), faster)
    assert faster.lr_lambdas[0](1) == 0.1
    assert save(make(SCHEDULERS["LambdaLR object"], 0)[2]).leaves["lr_lambdas/0/factor"] == 0.9


def test_an_average_of_a_compiled_and_parametrized_model_comes_back(tmp_path: Path) -> None:
    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.BatchNorm1d(2))
        return torch.compile(model, backend="eager"), swa_utils.AveragedModel(model, use_buffers=True)

    model, averaged = build(0)
    model(torch.randn(4, 2))
    averaged.update_parameters(model)
    safepoint.Checkpoint(model=model, ema=averaged).save(tmp_path)
    other, again = build(1)
    report = safepoint.Checkpoint(model=other, ema=again).restore(tmp_path)
    assert "ema/module.0.parametrizations.weight.original0" in report.matched
    for one, two in zip(averaged.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_scaler_comes_back() -> None:
    def scaler() -> Any:
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    source, target = scaler(), scaler()
    parameter = nn.Parameter(torch.ones(1))
    optimizer = SGD([parameter], lr=0.0)
    for _ in range(4):
        source.scale(parameter.sum()).backward()
        source.step(optimizer)
        source.update()
    put(save(source), target)
    assert target.state_dict() == source.state_dict()
    assert source.get_scale() == 2048.0
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    put(save(disabled), torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize("average", [None, swa_utils.get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
def test_an_averaged_model_comes_back(average: Any) -> None:
    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.Linear(2, 2)
        return model, swa_utils.AveragedModel(model, multi_avg_fn=average)

    model, averaged = build(0)
    other, again = build(1)
    averaged.update_parameters(model)
    put(save(averaged), again)
    put(save(model), other)
    for one, its_model in ((averaged, model), (again, other)):
        with torch.no_grad():
            its_model.weight.mul_(3)
        one.update_parameters(its_model)
    assert torch.equal(averaged.module.weight, again.module.weight)
    assert again.n_averaged.item() == 2


def test_schedulers_are_opaque() -> None:
    assert opaque.handles(make(SCHEDULERS["StepLR"], 0)[2])
