"""Inside the script's process: managers are watched, told other places, and killed when it is time.

Invariant: the script's own objects and random states are read, never changed.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal, final

import msgspec

from safepoint.adapters import random_states
from safepoint.api import model as models
from safepoint.api.checkpoint import Checkpoint
from safepoint.api.manager import CheckpointManager
from safepoint.api.tracked import expand_all
from safepoint.cli.exactness.places import Places
from safepoint.cli.exactness.records import Kill, Moment, Plan
from safepoint.cli.exactness.variables import Variables, digest, digest_of, identities
from safepoint.repository import Repository, check_metrics

_TF = "tensorflow.python.data"


@final
class Recorder:
    """Writes a line for each resume and save, and dies as planned.

    Args:
        plan: what the parent wants.
        script: whose variables are looked at.
    """

    def __init__(self, plan: Plan, script: Path) -> None:
        self._file = os.open(plan.records, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._kill = plan.kill
        self._variables = Variables(script)
        self._runs: dict[str, int] = {}
        self._asked: dict[int, str] = {}  # manager → the path that the script gave it
        self._started = time.monotonic()
        self.places = Places(Path(plan.files))

    def made(self, manager: CheckpointManager, path: str) -> None:
        """A manager was made for a path of the script's."""
        self._asked[id(manager)] = path
        self._runs.setdefault(path, len(self._runs))

    def resumed(self, manager: CheckpointManager, step: int) -> None:
        """A resume is over; `step` is what it restored, or -1."""
        self._write("resume", manager, step, {}, saved=False)

    def saving(self, step: int) -> None:
        """A save is about to begin."""
        if self._kill is not None and self._kill.before and step >= self._kill.step:
            die()

    def saved(self, manager: CheckpointManager, step: int, metrics: dict[str, Any], *, saved: bool) -> None:
        """A save returned: its commit may be on its way."""
        self._write("save", manager, step, metrics, saved=saved)
        kill = self._kill
        if kill is not None and not kill.before and step >= kill.step:
            threading.Thread(target=_die_later, args=(kill,), daemon=True).start()

    def ended(self) -> None:
        """The script ended; whoever was to die and has not, dies now."""
        if self._kill is not None:
            die()

    def _write(
        self,
        event: Literal["resume", "save"],
        manager: CheckpointManager,
        step: int,
        metrics: dict[str, Any],
        *,
        saved: bool,
    ) -> None:
        checkpoint = manager._checkpoint
        path = self._asked[id(manager)]
        moment = Moment(
            event,
            self._runs[path],
            path,
            step,
            saved,
            time.monotonic() - self._started,
            {name: repr(value) for name, value in check_metrics(metrics).items()},
            _leaves(checkpoint),
            {name: digest_of(state.capture()) for name, state in random_states().items()},
            manager._random,
            self._variables.of(_caller(), identities(checkpoint.objects), checkpoint.immutable),
        )
        os.write(self._file, msgspec.json.encode(moment) + b"\n")


def watch(recorder: Recorder) -> None:
    """Let `recorder` see every manager that this process makes, and give every path its place."""
    _watch_managers(recorder)
    places = recorder.places
    open_repository = Repository.__init__
    save_model, load_model = models.save_model, models.load_model

    @functools.wraps(open_repository)
    def init(self: Repository, path: Any, **options: Any) -> None:
        open_repository(self, places.repository(path), **options)

    Repository.__init__ = init  # type: ignore[method-assign]
    models.save_model = functools.wraps(save_model)(
        lambda model, path, **o: save_model(model, places.target(path), **o)
    )
    models.load_model = functools.wraps(load_model)(lambda path, **o: load_model(places.model(path), **o))


def _watch_managers(recorder: Recorder) -> None:
    init, resume, save = CheckpointManager.__init__, CheckpointManager.resume, CheckpointManager.save

    @functools.wraps(init)
    def made(self: CheckpointManager, checkpoint: Checkpoint, directory: Any, **options: Any) -> None:
        asked = directory.location if isinstance(directory, Repository) else os.fspath(directory)
        recorder.made(self, os.path.abspath(asked))  # noqa: PTH100 — as the script says it
        init(
            self, checkpoint, directory if isinstance(directory, Repository) else recorder.places.own(asked), **options
        )

    @functools.wraps(resume)
    def resumed(self: CheckpointManager, **options: Any) -> int:
        start = resume(self, **options)
        recorder.resumed(self, start - 1)
        return start

    @functools.wraps(save)
    def saved(self: CheckpointManager, step: int | None = None, metrics: Any = None, **options: Any) -> Any:
        running = self._step if self._step is not None else self._last_step() + 1
        finished = running if step is None else int(step)
        recorder.saving(finished)
        handle = save(self, step, metrics, **options)
        recorder.saved(self, finished, dict(metrics or {}), saved=handle is not None)
        return handle

    CheckpointManager.__init__ = made  # type: ignore[method-assign]
    CheckpointManager.resume = resumed  # type: ignore[method-assign]
    CheckpointManager.save = saved  # type: ignore[method-assign]


def die() -> None:
    """What no handler, `finally` or exit function sees."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_later(kill: Kill) -> None:
    time.sleep(kill.delay_seconds)
    die()


def _leaves(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of all that is tracked.

    Without iterators of tf.data, whose bytes describe one position in several ways: what they hand out tells.
    """
    values = {name: checkpoint[name] for name in checkpoint.immutable}
    leaves = checkpoint.capture(values).leaves
    readers = tuple(
        name for name, obj in expand_all(checkpoint.objects).items() if type(obj).__module__.startswith(_TF)
    )
    return {name: digest(leaf) for name, leaf in leaves.items() if not name.startswith(tuple(f"{r}/" for r in readers))}


def _caller() -> FrameType:
    return sys._getframe(1)
