"""The torch adapter keeps every adapter's promises."""

from __future__ import annotations

from typing import Any

import torch

from safepoint.adapters import Scope
from safepoint.adapters import torch as adapter
from safepoint.testing.adapter_suite import AdapterSuite


def network(seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        torch.nn.BatchNorm2d(4),
        torch.nn.Embedding(5, 4, dtype=torch.bfloat16),
    )


class Odd(torch.nn.Module):
    """0-d, empty, transposed and expanded buffers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("scalar", torch.randn(()))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("transposed", torch.randn(3, 5).t())
        self.register_buffer("every_other", torch.randn(8)[::2])
        self.register_buffer("expanded", torch.randn(1, 3).expand(4, 3))
        self.register_buffer("conjugated", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("negative", torch.randn(3, dtype=torch.complex64).conj().imag)


class Extra(torch.nn.Linear):
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(2, 2)
        self.notes = {"seed": seed, "seen": torch.arange(3) + seed, "history": [1.5, None, float("nan")]}

    def get_extra_state(self) -> Any:
        return self.notes

    def set_extra_state(self, state: Any) -> None:
        self.notes = state


def trained(kind: Any, **arguments: Any) -> Any:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2)
        optimizer = kind(model.parameters(), **arguments)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step(lambda: model(torch.ones(4, 3)).square().sum())
        return optimizer

    return make


class TestTorch(AdapterSuite):
    adapter = adapter

    def scope(self, obj: Any) -> Scope:
        groups = getattr(obj, "param_groups", [])
        return Scope({id(p): f"model/{i}.{j}" for i, g in enumerate(groups) for j, p in enumerate(g["params"])})

    def objects(self) -> Any:
        return {
            "network": network,
            "odd": Odd,
            "extra": Extra,
            "lstm": lambda seed: (torch.manual_seed(seed), torch.nn.LSTM(3, 4))[1],
            "adam": trained(torch.optim.Adam, amsgrad=True),
            "sgd": trained(torch.optim.SGD, lr=0.1, momentum=0.9),
            "adagrad": trained(torch.optim.Adagrad),
            "generator": lambda seed: torch.Generator().manual_seed(seed),
        }
