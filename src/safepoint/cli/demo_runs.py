"""The demo's processes: started for real, watched by their own words, killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safepoint.errors import SafepointError

_SCRIPTS = Path(__file__).parent / "demos"

# Quiet; on the CPU, so that every machine shows the same; and without the kernels that TensorFlow picks by processor.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}

OnStep = Callable[["Training"], None]


@final
@dataclass(slots=True)
class Training:
    """What a training process told.

    Attributes:
        first: the first step that it did, or None if it did none.
        last: the last step that it told of.
        steps: of the whole run.
        per_epoch: steps in an epoch.
        loss: of the last step.
        stalls: seconds for which each save held training up.
        killed: whether it died of SIGKILL.
        predictions: of the finished model on the held-out digits, as hexadecimal text.
    """

    first: int | None = None
    last: int = -1
    steps: int = 0
    per_epoch: int = 1
    loss: float = 0.0
    stalls: list[float] = field(default_factory=list)
    killed: bool = False
    predictions: str = ""

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return self.last // self.per_epoch + 1

    @property
    def batch(self) -> int:
        """The batch of the last step in its epoch, counted from 1."""
        return self.last % self.per_epoch + 1

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in one line of the process."""
        self.predictions = event.get("predictions", self.predictions)
        if "step" not in event:
            return
        self.last, self.steps, self.per_epoch = event["step"], event["steps"], event["per_epoch"]
        self.first = self.last if self.first is None else self.first
        self.loss = event["loss"]
        if event["stall"]:
            self.stalls.append(event["stall"])


@final
class Processes:
    """Processes of one demo; those that still run when it ends, for whatever reason, are killed.

    Args:
        logs: a folder for what they say on stderr.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._over = False

    def train(self, script: str, *arguments: Path, log: str, on_step: OnStep, kill: bool = False) -> Training:
        """Run a training script to its end, or kill it in the middle of the epoch in the middle of the run."""
        training = Training()
        with self._start(script, *arguments, log=log) as process:
            assert process.stdout is not None
            for line in process.stdout:
                training.hear(json.loads(line))
                on_step(training)
                half = (training.steps // training.per_epoch // 2) * training.per_epoch + training.per_epoch // 2
                if kill and training.last >= half and not training.killed:
                    process.kill()
                    training.killed = True  # lines written before it died are still in the pipe
            code = process.wait()
            if code != (-signal.SIGKILL if training.killed else 0):
                raise self._failure(script, log, code)
            if kill and not training.killed:
                raise SafepointError(f"{script} ended before it could be killed", hint="try again")
            on_step(training)
        return training

    def ask(self, script: str, *arguments: Path, log: str) -> dict[str, Any]:
        """Run a script that prints one JSON document."""
        with self._start(script, *arguments, log=log) as process:
            text, _ = process.communicate()
            if process.returncode != 0:
                raise self._failure(script, log, process.returncode)
        answer = json.loads(text)
        assert isinstance(answer, dict)
        return answer

    def end(self) -> None:
        """Kill what still runs; nothing is started any more."""
        with self._lock:
            self._over = True
            for process in self._running:
                process.kill()

    @contextmanager
    def _start(self, script: str, *arguments: Path, log: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(_SCRIPTS / script), *map(str, arguments)]
        with self._log_file(log).open("w", encoding="utf-8") as stderr:
            with self._lock:
                if self._over:
                    raise SafepointError("the demo is over")
                process = subprocess.Popen(  # noqa: S603 — our own scripts under our own interpreter
                    command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **_ENVIRONMENT}
                )
                self._running.add(process)
            try:
                yield process
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
                with self._lock:
                    self._running.discard(process)

    def _failure(self, script: str, log: str, code: int) -> SafepointError:
        path = self._log_file(log)
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return SafepointError(
            f"{script} failed with exit code {code}",
            found=lines[-1].strip() if lines else "not a word",
            hint=f"all it said is in {path}",
        )

    def _log_file(self, log: str) -> Path:
        return self._logs / f"{log}.log"
