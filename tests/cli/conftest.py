"""A run to look at, and the command line called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safepoint.cli.program import run as run_program
from safepoint.repository import Repository
from safepoint.tree import Branch, StateTree, Tensor

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)


@pytest.fixture
def safepoint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run_program([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def tree(step: int, extra: dict[str, Any] | None = None) -> StateTree:
    weight = np.full((100, 50), step, np.float32)
    frozen = np.arange(300, dtype=np.int64)
    leaves = {
        "model/encoder.weight": Tensor.of(weight),
        "model/encoder.bias": Tensor.of(np.zeros(50, np.float32)),
        "model/frozen": Tensor.of(frozen),
        "optimizer/encoder.weight/exp_avg": Tensor.of(weight * 2),
        "state/patience": 3,
        **{f"history/loss/{index}": 1 / (index + 1) for index in range(step + 1)},
        **(extra or {}),
    }
    return StateTree(leaves, Branch("dict"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Snapshots 0 to 4 of steps 9, 19, ... 49 in `runs/digits`; the best is number 2; the current folder is above."""
    monkeypatch.chdir(tmp_path)
    times = iter(START + timedelta(hours=hour) for hour in range(1000))
    repository = Repository("runs/digits", clock=lambda: next(times))
    for index in range(5):
        repository.commit(
            tree(index * 10 + 9),
            step=index * 10 + 9,
            metrics={"loss": abs(index - 2) + 0.25, "accuracy": 0.5},
            config={"lr": 1e-3, "layers": [1, 2]},
            environment={"python": "3.11", "torch": "2.13"},
        )
    return Repository("runs/digits")


def damage(repository: Repository, number: int) -> str:
    """Flip a byte in the first block of a snapshot's first tensor; returns the pack's file name."""
    manifest = repository.manifest(repository.resolve(f"id:{number}"))
    block = manifest.stored["model/encoder.weight"].blocks[0]
    file = Path(repository.location) / "packs" / f"{block.pack}.safetensors"
    data = bytearray(file.read_bytes())
    data[block.offset + 10] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    return f"packs/{block.pack}.safetensors"
