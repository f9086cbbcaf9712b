"""The proof for one example: twenty deaths, and every bit of the run that never died."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safepoint.cli.demo_proof import compare as compare_repositories
from safepoint.cli.exactness.compare import Reference, compare
from safepoint.cli.exactness.places import Places
from safepoint.cli.exactness.records import Moment, read_moments
from safepoint.repository import Repository

EXAMPLES = Path(__file__).parents[2] / "examples"

# One thread a process: the test machine is small. JAX keeps what it compiled, for the children that come later.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@dataclass(frozen=True)
class Proved:
    """What was done to a run, and how much of it was compared.

    Attributes:
        kills: each by SIGKILL from another process.
        in_flight: those that fell between a save that had returned and its commit.
        saves: calls of `save`, due or not, in which every digest was equal.
        tensors: in the last snapshot.
    """

    kills: int
    in_flight: int
    saves: int
    tensors: int


class Zygote:
    """See `zygote.py`."""

    def __init__(self, folder: Path, script: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(script)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT, **environment},
        )

    def run(self, name: str, number: int, kill: dict[str, Any] | None, **arguments: Any) -> tuple[int, list[Moment]]:
        """Returns the newest step whose save had returned, and what the run told."""
        files, records = self.folder / name / "files", self.folder / name / f"records-{number}.jsonl"
        files.mkdir(parents=True, exist_ok=True)
        log = self.folder / name / f"log-{number}.txt"
        request = {"files": str(files), "records": str(records), "log": str(log), "kill": kill, "arguments": arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{name} {number}: the zygote died"
        over = json.loads(answer)
        assert over["code"] == (0 if kill is None else -signal.SIGKILL), log.read_text()
        return over["begun"], read_moments(records)

    def repository(self, name: str, run: str) -> Path:
        return Places(self.folder / name / "files").own(run)

    def end(self) -> None:
        self._process.communicate()


@contextmanager
def zygote(folder: Path, script: Path, **environment: str) -> Iterator[Zygote]:
    process = Zygote(folder, script, {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), **environment})
    try:
        yield process
    finally:
        process.end()


def prove(process: Zygote, run: str, *, kills: int, seed: int = 0, **arguments: Any) -> Proved:
    """Run to the end; run again with `kills` deaths at random moments; everything that the two lived is equal."""
    rng = random.Random(seed)
    _, alone = process.run("alone", 0, None, run=run, **arguments)
    saves = [moment for moment in alone if moment.event == "save"]
    pause = (saves[-1].seconds - saves[0].seconds) / (len(saves) - 1)
    chain, in_flight = [], 0
    for number in range(kills):
        # Some right after a save returned, when its commit has just begun; some before a save; some in between.
        event, longest = rng.choice([("after", 0.0), ("after", 0.005), ("before", 2 * pause)])
        saves = rng.randint(1, 2 if event == "after" else 6)
        kill = {"saves": saves, "event": event, "delay_seconds": rng.uniform(0, longest)}
        begun, moments = process.run("killed", number, kill, run=run, **arguments)
        chain.append(moments)
        in_flight += begun > newest_step(process.repository("killed", run))
    chain.append(process.run("killed", kills, None, run=run, **arguments)[1])
    compared = compare(Reference(alone), chain)
    assert compared.difference is None, compared.difference
    proof = compare_repositories(process.repository("alone", run), process.repository("killed", run))
    assert proof.equal, proof.difference
    return Proved(kills, in_flight, compared.saves, proof.num_tensors)


def newest_step(path: Path) -> int:
    repository = Repository(path)
    return repository.resolve("latest").step if repository.exists and repository.snapshots else -1
