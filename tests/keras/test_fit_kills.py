"""`fit`, killed by SIGKILL at random batches, several times in one run, is bit for bit the `fit` that was not killed.

One process a backend imports Keras once and forks a child for each run. The three work at the same time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import safepoint

SOURCE = Path(safepoint.__file__).parents[1]
BACKENDS = ["tensorflow", "jax", "torch"]
KILLS = {"arrays": 5, "arrays in parts": 4, "dataset object": 4, "pipeline": 4, "generator": 3}


class Zygote:
    """The process of one backend."""

    def __init__(self, backend: str, folder: Path) -> None:
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(SOURCE), "TF_CPP_MIN_LOG_LEVEL": "3"}
        folder.mkdir()
        self.folder = folder
        with (folder / "err").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fit_zygote.py")), str(folder / "cache")],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )  # fmt: skip

    def run(self, name: str, **request: object) -> tuple[int, object, str]:
        """Exit code, result and messages of one run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out = self.folder / f"{name}.json"
        self.process.stdin.write(json.dumps({**request, "out": str(out)}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / "err").read_text()[-3000:]
        said = out.with_suffix(".err").read_text()
        return int(answer), json.loads(out.read_text()) if out.exists() else None, said


def proof(zygote: Zygote, data: str) -> tuple[object, object, str, list[int]]:
    """What the uninterrupted and the killed run end with, what the latter said, and how it was ended each time."""
    code, whole, said = zygote.run(f"{data} whole", data=data, repository=None, kill_at=None, first=True)
    assert code == 0, said[-3000:]
    batches = len(whole["batches"])  # type: ignore[index,call-overload]
    rng = random.Random(f"{data} {zygote.folder.name}")
    codes = []
    for index, kill_at in enumerate([*sorted(rng.sample(range(2, batches), KILLS[data])), None]):
        repository = str(zygote.folder / data)
        code, killed, said = zygote.run(
            f"{data} killed", data=data, repository=repository, kill_at=kill_at, first=bool(index % 2)
        )
        codes.append(code)
    return whole, killed, said, codes


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory):
    """(backend, data) → the proof, which may still be on its way."""
    folder = tmp_path_factory.mktemp("kills")
    zygotes = {backend: Zygote(backend, folder / backend) for backend in BACKENDS}
    found: dict[tuple[str, str], Future[object]] = {}
    pools = [ThreadPoolExecutor(1) for _ in zygotes]
    for (backend, zygote), pool in zip(zygotes.items(), pools, strict=True):
        found |= {(backend, data): pool.submit(proof, zygote, data) for data in KILLS}
    yield found
    for pool in pools:
        pool.shutdown(cancel_futures=True)
    for zygote in zygotes.values():
        zygote.process.stdin.close()
        zygote.process.wait()
        zygote.process.stdout.close()


@pytest.mark.parametrize("data", KILLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_fit_ends_bit_for_bit_like_one_that_was_not(backend, data, proofs) -> None:
    whole, killed, said, codes = proofs[backend, data].result()
    assert codes == [-signal.SIGKILL] * KILLS[data] + [0], said[-3000:]
    assert killed == whole
    assert "resuming in epoch" in said or "resuming at the start of epoch" in said
    assert ("not exact" in said) == (data == "generator")  # which gives the same batches here, but who could know


def test_there_are_twenty_kills_a_backend() -> None:
    assert sum(KILLS.values()) == 20
