"""`safepoint health` of real training: a healthy run has no finding, each fault its own, at its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

import safepoint
from safepoint.api.health import Health, examine

FAULT = 24  # step


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 32, bias=False)
        self.norm = torch.nn.BatchNorm1d(32)
        self.second = torch.nn.Linear(32, 32)
        self.third = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.third(torch.relu(self.second(x)))))


Fault = Callable[[Network, torch.optim.Optimizer], None]


def train(path: Path, fault: Fault | None = None, *, kind: type = torch.optim.Adam, lasting: bool = False) -> Health:
    """Forty steps on digits, saved at every fourth; `fault` strikes at step 24, or at each step from there on."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    net = Network()
    optimizer = kind(net.parameters(), lr=1e-2)
    checkpoint = safepoint.Checkpoint(model=net, optimizer=optimizer)
    for step in range(41):
        batch = torch.randint(0, len(x), (64,))
        loss = torch.nn.functional.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if fault is not None and (step == FAULT or (lasting and step > FAULT)):
            with torch.no_grad():
                fault(net, optimizer)
        if step % 4 == 0:
            checkpoint.save(path, step=step, metrics={"loss": loss})
    return examine(safepoint.Repository(path))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_healthy_training_has_no_finding(tmp_path: Path, kind: type) -> None:
    health = train(tmp_path / "run", kind=kind)
    assert health.findings == ()
    assert health.notes == ()
    assert len(health.snapshots) == 11


def poison(net: Network, _: torch.optim.Optimizer) -> None:
    net.second.weight[3, 5] = float("nan")


def explode(net: Network, _: torch.optim.Optimizer) -> None:
    net.second.weight *= 1000


def kill_units(net: Network, _: torch.optim.Optimizer) -> None:
    net.second.weight[:4] = 0


def copy_a_layer(net: Network, _: torch.optim.Optimizer) -> None:
    net.third.weight.copy_(net.second.weight)


def lose_the_optimizer(_: Network, optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].zero_()
        state["exp_avg_sq"].zero_()


@pytest.mark.parametrize(
    "fault, lasting, kind, name",
    [
        (poison, False, "not finite", "model/second.weight"),
        (explode, False, "exploding", "model/second.weight"),
        (kill_units, True, "dead units", "model/second.weight"),
        (copy_a_layer, False, "duplicates", "model/third.weight"),
        (lose_the_optimizer, False, "moments at zero", "optimizer/model/head.bias/exp_avg"),
    ],
)
def test_each_fault_is_found_at_its_step(tmp_path: Path, fault: Fault, lasting, kind: str, name: str) -> None:
    (finding,) = train(tmp_path / "run", fault, lasting=lasting).findings
    assert finding.kind == kind
    assert finding.snapshot.step == FAULT
    assert finding.last_good.step == FAULT - 4
    assert name in finding.evidence


def test_a_layer_with_a_learning_rate_of_zero_stands_still(tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}

    def freeze(net: Network, _: torch.optim.Optimizer) -> None:
        kept.setdefault("weight", net.third.weight.clone())
        net.third.weight.copy_(kept["weight"])

    (finding,) = train(tmp_path / "run", freeze, lasting=True).findings
    assert finding.kind == "standing still"
    assert finding.last_good.step == FAULT
    assert list(finding.evidence) == ["model/third.weight"]


def test_a_layer_that_no_gradient_reaches_has_moments_at_zero(tmp_path: Path, monkeypatch) -> None:
    def forward(self: Network, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(hidden))) + 0 * self.third(hidden).sum()

    monkeypatch.setattr(Network, "forward", forward)
    (finding,) = train(tmp_path / "run").findings
    assert finding.kind == "moments at zero"
    assert {name.split("/")[2] for name in finding.evidence} == {"third.weight", "third.bias"}


def test_a_backbone_that_is_frozen_on_purpose_is_a_note(tmp_path: Path, monkeypatch) -> None:
    real = Network.__init__

    def build(self: Network) -> None:
        real(self)
        self.second.requires_grad_(requires_grad=False)

    monkeypatch.setattr(Network, "__init__", build)
    health = train(tmp_path / "run")
    assert health.findings == ()
    assert health.notes == ("never moved, frozen on purpose? model/second.weight, model/second.bias",)
