"""The processes of a verification: one that is left alone, and a chain of them that are killed and resumed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

from safepoint.cli.exactness.places import Places
from safepoint.cli.exactness.records import Kill, Moment, Plan, read_moments
from safepoint.errors import SafepointError

_CODE = "from safepoint.cli.exactness.child import main; main()"
_POLL_SECONDS = 0.02
_SHOW_SECONDS = 0.3

OnProgress = Callable[[int], None]
"""Called with the number of saves so far."""


@final
@dataclass(frozen=True, slots=True)
class Process:
    """One process of the script, over.

    Attributes:
        code: its exit code; negative: the signal that it died of.
        moments: what it told.
        newest: for each run, by number: the newest step that was durable when it ended, or -1.
        log: all that it wrote to stdout and stderr.
    """

    code: int
    moments: tuple[Moment, ...]
    newest: dict[int, int]
    log: Path

    @property
    def saves(self) -> list[Moment]:
        """Its calls of `save`."""
        return [moment for moment in self.moments if moment.event == "save"]

    def last_words(self, lines: int = 12) -> str:
        """The end of what it wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in text if line.strip()][-lines:])


@final
class Runs:
    """Starts a script again and again, each run in a folder of its own.

    Args:
        folder: takes everything that the runs write.
        command: the script and its arguments.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder = folder
        self._command = tuple(command)

    def alone(self, name: str, on_progress: OnProgress) -> Process:
        """The script from its start to its end."""
        return self._process(name, 0, None, on_progress)

    def killed(self, kills: Sequence[Kill], on_process: Callable[[int], OnProgress]) -> list[Process]:
        """The script, killed and started again for each of `kills`, and then to its end; stops where one fails."""
        chain: list[Process] = []
        for number, kill in enumerate([*kills, None]):
            process = self._process("killed", number, kill, on_process(number))
            chain.append(process)
            if process.code != (0 if kill is None else -signal.SIGKILL):
                break
        return chain

    def _process(self, name: str, number: int, kill: Kill | None, on_progress: OnProgress) -> Process:
        folder = self._folder / name
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        records, log = folder / f"records-{number}.jsonl", folder / f"log-{number}.txt"
        plan = msgspec.json.encode(Plan(str(files), str(records), kill)).decode()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # what a killed process said must not die with it
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 — the user's own script under the user's own interpreter
                [sys.executable, "-c", _CODE, plan, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # its workers die with it
            )
            try:
                _wait(process, records, on_progress)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        moments = tuple(read_moments(records))
        paths = {moment.run: moment.path for moment in moments}
        newest = {run: _newest(Places(files).own(path)) for run, path in paths.items()}
        return Process(code, moments, newest, log)


def choose_kills(saves: Sequence[Moment], number: int, seed: int) -> list[Kill]:
    """Random moments to kill at, in their order: after the first snapshot and before the last save.

    Raises:
        SafepointError: the run saves too seldom to be killed between two saves.
    """
    rng = random.Random(seed)  # noqa: S311 — reproducible, not secret
    first = next((index for index, moment in enumerate(saves) if moment.saved), len(saves))
    candidates = range(first, len(saves) - 1)
    if not candidates:
        raise SafepointError(
            "the script saves too seldom to be killed between two saves",
            expected="at least two saves",
            found=f"{len(saves)} in a whole run",
            hint="let it save more often, or train for longer",
        )
    kills = []
    for index in sorted(rng.sample(candidates, min(number, len(candidates)))):
        pause = saves[index + 1].seconds - saves[index].seconds
        # Right before a save, while its commit is on the way, or anywhere before the next.
        before, longest = rng.choice([(True, 0.0), (False, 0.01), (False, pause)])
        step = saves[index + 1].step if before else saves[index].step
        kills.append(Kill(step, before, rng.uniform(0, min(longest, pause))))
    return kills


def _wait(process: subprocess.Popen[bytes], records: Path, on_progress: OnProgress) -> None:
    shown = 0.0
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - shown > _SHOW_SECONDS:
            shown = time.monotonic()
            on_progress(_count_saves(records))


def _count_saves(records: Path) -> int:
    try:
        return records.read_bytes().count(b'"event":"save"')
    except OSError:
        return 0


def _newest(path: Path) -> int:
    from safepoint.repository import Repository

    repository = Repository(path)
    if not repository.exists:
        return -1
    snapshots = [snapshot for snapshot in repository.history()[0].values() if not snapshot.pruned]
    return max(snapshots, key=lambda snapshot: snapshot.number).step if snapshots else -1
