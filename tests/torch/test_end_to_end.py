"""Checkpoint and CheckpointManager over torch: a run that is killed and resumed is the run that never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import data

import safepoint

STEPS = 12


class Noisy(data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.full((4,), float(index)) + torch.rand(4)


class Run:
    """Dropout, batch norm, AdamW, OneCycle, GradScaler, shuffled and augmented data: everything that must be kept."""

    def __init__(self, seed: int, *, workers: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=100)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        self.loader = safepoint.Resumable(data.DataLoader(Noisy(), 4, shuffle=True, num_workers=workers), seed=1)
        self.state: dict[str, Any] = {"losses": []}

    def checkpoint(self) -> safepoint.Checkpoint:
        return safepoint.Checkpoint(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            loader=self.loader,
            state=self.state,
        )

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.state["losses"].append(loss.item())

    def train(self, path: Path, stop: int = STEPS) -> None:
        """Up to step `stop`, as if killed there: the last save is finished, and nothing else is."""
        manager = safepoint.CheckpointManager(self.checkpoint(), path)
        batches = self.batches()
        for step in manager.steps(STEPS):
            self.step(next(batches))
            manager.save()
            if step + 1 == stop:
                break
        manager.wait()

    def batches(self) -> Any:
        while True:
            yield from self.loader


def same(one: Run, other: Run) -> bool:
    """Bit for bit: weights, moments, schedule, scale, position and every loss."""
    trees = [run.checkpoint().capture() for run in (one, other)]
    mine, theirs = ({name: tensor.read().tobytes() for name, tensor in tree.tensors.items()} for tree in trees)
    values = [{n: x for n, x in tree.leaves.items() if n not in mine} for tree in trees]
    return mine == theirs and values[0] == values[1] and one.state == other.state


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, workers: int, stop: int) -> None:
    whole, killed, resumed = (Run(0, workers=workers), Run(0, workers=workers), Run(5, workers=workers))
    torch.manual_seed(0)
    whole.train(tmp_path / "whole")
    torch.manual_seed(0)
    killed.train(tmp_path / "killed", stop)
    torch.manual_seed(1)
    resumed.train(tmp_path / "killed")
    assert len(resumed.state["losses"]) == STEPS
    assert resumed.scaler.get_scale() == 1024.0 * 2 ** (STEPS // 3)
    assert resumed.loader.state_dict()["batch"] == STEPS % 5
    assert same(whole, resumed)


SCRIPT = """
import sys, os, signal, torch
sys.path.insert(0, sys.argv[3])
from tests.torch.test_end_to_end import Run, STEPS
import safepoint
torch.set_num_threads(1)
run = Run(0)
torch.manual_seed(0)
manager = safepoint.CheckpointManager(run.checkpoint(), sys.argv[1])
batches = run.batches()
for step in manager.steps(STEPS):
    run.step(next(batches))
    manager.save()
    if step == int(sys.argv[2]):
        manager.wait()
        os.kill(os.getpid(), signal.SIGKILL)
manager.close()
print(repr(run.state["losses"]))
"""


def test_a_process_that_was_killed_goes_on_exactly(tmp_path: Path) -> None:
    def run(path: str, kill_at: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / path), str(kill_at), str(Path(__file__).parents[2])]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    whole = run("whole", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run("killed", 6)
    assert killed.returncode == -9, killed.stderr
    resumed = run("killed", -1)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]


def test_the_article_in_torch(tmp_path: Path) -> None:
    run, other = Run(0), Run(1)
    safepoint.Checkpoint(model=run.model).save(tmp_path)
    safepoint.Checkpoint(model=run.model).save(tmp_path)
    report = safepoint.Checkpoint(model=other.model).restore(tmp_path)
    assert "model/0.weight" in report.matched
    assert same(run, other)


def test_a_compiled_model_is_restored_into_a_plain_one(tmp_path: Path) -> None:
    run, other = Run(0), Run(1)
    compiled = torch.compile(run.model, backend="eager")
    safepoint.Checkpoint(model=compiled, optimizer=run.optimizer).save(tmp_path)
    safepoint.Checkpoint(model=other.model, optimizer=other.optimizer).restore(tmp_path)
    assert same(run, other)


def test_weights_alone_ignore_a_saved_optimizer(tmp_path: Path) -> None:
    run, other = Run(0), Run(1)
    run.train(tmp_path, 2)
    report = safepoint.Checkpoint(model=other.model).restore(tmp_path)
    assert any(name.startswith("optimizer/") for name in report.ignored)
    assert torch.equal(run.model[0].weight, other.model[0].weight)


def test_a_fresh_optimizer_gets_its_slots(tmp_path: Path) -> None:
    run, other = Run(0), Run(1)
    run.step(torch.ones(4, 4))
    safepoint.Checkpoint(model=run.model, optimizer=run.optimizer).save(tmp_path)
    safepoint.Checkpoint(model=other.model, optimizer=other.optimizer).restore(tmp_path)
    for one, two in zip(run.model.parameters(), other.model.parameters(), strict=True):
        mine, theirs = run.optimizer.state[one], other.optimizer.state[two]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_renaming_a_layer_renames_its_slots(tmp_path: Path) -> None:
    def make(name: str) -> Any:
        torch.manual_seed(len(name))
        model = nn.Sequential()
        model.add_module(name, nn.Linear(2, 1))
        return model, torch.optim.LBFGS(model.parameters(), max_iter=4)

    model, optimizer = make("old")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).exp().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    safepoint.Checkpoint(model=model, optimizer=optimizer).save(tmp_path)
    again, other = make("renamed")
    safepoint.Checkpoint(model=again, optimizer=other).restore(tmp_path, rename={r"\bold\.": "renamed."})
    mine, theirs = optimizer.state[model.old.weight], other.state[again.renamed.weight]
    assert mine.keys() == theirs.keys()
    assert torch.equal(mine["old_dirs"][0], theirs["old_dirs"][0])


def test_a_mismatch_changes_nothing_and_lists_everything(tmp_path: Path) -> None:
    run = Run(0)
    safepoint.Checkpoint(model=run.model, optimizer=run.optimizer).save(tmp_path)
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(safepoint.MismatchError) as caught:
        safepoint.Checkpoint(model=other, optimizer=torch.optim.AdamW(other.parameters())).restore(tmp_path)
    assert {"model/3.weight", "model/3.bias"} <= caught.value.differs.keys()
    assert {"model/4.weight", "optimizer/model/4.bias/group"} <= set(caught.value.missing)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_an_optimizer_without_its_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(safepoint.UnsupportedError, match="track the model too"):
        safepoint.Checkpoint(optimizer=Run(0).optimizer).save(tmp_path)


def test_a_bare_loader_is_refused_with_the_hint(tmp_path: Path) -> None:
    with pytest.raises(safepoint.UnsupportedError, match=r"safepoint\.Resumable\(loader\)"):
        safepoint.Checkpoint(loader=data.DataLoader(Noisy())).save(tmp_path)


def test_parts_of_two_models_in_one_optimizer(tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        models = {"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)}
        optimizer = torch.optim.Adam([p for model in models.values() for p in model.parameters()])
        models["d"](models["g"](torch.ones(1, 2))).sum().backward()
        optimizer.step()
        return models, optimizer

    models, optimizer = make(0)
    safepoint.Checkpoint(models=models, optimizer=optimizer).save(tmp_path)
    again, other = make(1)
    safepoint.Checkpoint(models=again, optimizer=other).restore(tmp_path)
    assert torch.equal(optimizer.state[models["d"].weight]["exp_avg"], other.state[again["d"].weight]["exp_avg"])


def test_lora_tracks_its_own_parameters(tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"base": nn.Linear(2, 2), "lora_a": nn.Linear(2, 1)})
        model["base"].requires_grad_(False)
        return model, {name: p for name, p in model.named_parameters() if "lora" in name}

    model, adapter = make(0)
    safepoint.Checkpoint(adapter=adapter, optimizer=torch.optim.Adam(adapter.values())).save(tmp_path)
    again, other = make(1)
    base = again["base"].weight.clone()
    safepoint.Checkpoint(adapter=other, optimizer=torch.optim.Adam(other.values())).restore(tmp_path)
    assert torch.equal(again["lora_a"].weight, model["lora_a"].weight)
    assert torch.equal(again["base"].weight, base)


def test_tied_weights_that_differ_are_refused_before_anything_changes(tmp_path: Path) -> None:
    def make(*, tie: bool) -> Any:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        if tie:
            model[1].weight = model[0].weight
        return model

    safepoint.Checkpoint(first=nn.Linear(1, 1), model=make(tie=False)).save(tmp_path)
    first, model = nn.Linear(1, 1), make(tie=True)
    before = first.weight.clone()
    with pytest.raises(safepoint.SafepointError) as caught:
        safepoint.Checkpoint(first=first, model=model).restore(tmp_path)
    if isinstance(caught.value, safepoint.MismatchError):
        assert torch.equal(first.weight, before)


@pytest.mark.parametrize("in_place", [False, True])
def test_everything_comes_back_in_one_process(tmp_path: Path, in_place: bool) -> None:  # noqa: FBT001
    run = Run(0)
    generator = torch.Generator().manual_seed(1)
    checkpoint = safepoint.Checkpoint(
        model=run.model, optimizer=run.optimizer, scheduler=run.scheduler, generator=generator, state=run.state
    )
    torch.manual_seed(0)
    run.step(torch.ones(4, 4))
    checkpoint.save(tmp_path)
    randomness = torch.get_rng_state()
    run.step(torch.ones(4, 4))
    expected = run.state["losses"][-1], torch.rand(3, generator=generator).tolist()
    run.step(torch.zeros(4, 4))
    checkpoint.restore(tmp_path, in_place=in_place)
    torch.set_rng_state(randomness)
    run.step(torch.ones(4, 4))
    assert (run.state["losses"][-1], torch.rand(3, generator=generator).tolist()) == expected
    assert len(run.state["losses"]) == 2


def test_going_back_to_before_the_first_step_empties_the_optimizer(tmp_path: Path) -> None:
    run = Run(0)
    checkpoint = safepoint.Checkpoint(model=run.model, optimizer=run.optimizer)
    checkpoint.save(tmp_path)
    run.step(torch.ones(4, 4))
    checkpoint.restore(tmp_path)
    assert not run.optimizer.state


def test_what_fits_is_taken_and_trains_on(tmp_path: Path) -> None:
    run = Run(0)
    run.step(torch.ones(4, 4))
    safepoint.Checkpoint(model=run.model, optimizer=run.optimizer).save(tmp_path)
    other = Run(1)
    other.model[3] = nn.Linear(8, 2)
    other.optimizer = torch.optim.AdamW(other.model.parameters())
    report = safepoint.Checkpoint(model=other.model, optimizer=other.optimizer).restore(tmp_path, strict=False)
    assert torch.equal(other.model[0].weight, run.model[0].weight)
    assert "model/3.weight" in report.reshaped
    other.optimizer.zero_grad()
    other.model(torch.ones(4, 4)).sum().backward()
    other.optimizer.step()


def test_another_dtype_is_refused_or_cast(tmp_path: Path) -> None:
    run, other = Run(0), Run(1)
    run.step(torch.ones(4, 4))
    safepoint.Checkpoint(model=run.model).save(tmp_path)
    half = other.model.to(torch.bfloat16)
    with pytest.raises(safepoint.MismatchError):
        safepoint.Checkpoint(model=half).restore(tmp_path)
    safepoint.Checkpoint(model=half).restore(tmp_path, cast=True)
    assert torch.equal(half[0].weight, run.model[0].weight.to(torch.bfloat16))
