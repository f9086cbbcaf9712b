"""CheckpointManager: when to save, what to keep, in the background, and going on where a run was killed.

Invariant: one save is on its way at most; each is a child of this manager's last; an error of the background is raised
at the next call.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, final

from safepoint.api.announce import announce, logger
from safepoint.api.arguments import check_patterns, check_total
from safepoint.api.checkpoint import Checkpoint, environment, log_saved
from safepoint.api.collector import no_collection
from safepoint.api.handle import Handle, release
from safepoint.api.overlap import Overlap
from safepoint.api.plan import Options
from safepoint.api.policies import Moment, SavePolicy, check_policies, default_keep
from safepoint.api.ranks import Ranks
from safepoint.api.report import Report
from safepoint.api.resume import Resumption
from safepoint.api.signals import StopSignals
from safepoint.api.staging import Staged, Staging
from safepoint.api.tracked import expand_all
from safepoint.errors import ConflictError, ExistsError, SafepointError, StoreError, UnsupportedError
from safepoint.repository import (
    Repository,
    Retention,
    Snapshot,
    check_metrics,
    check_step,
    check_tags,
    decode_config,
    encode_config,
    lineage,
)
from safepoint.tree import StateTree


@final
class CheckpointManager:
    """Saves a checkpoint's objects while they train, keeps what policies keep, and resumes exactly.

    Args:
        checkpoint: what to save.
        directory: of the repository: one run is one repository.
        save: policies, any of which suffices (`EverySteps`, `EveryMinutes`, `OnBest`); empty: every call saves.
        keep: policies, any of which suffices (`Latest`, `Best`, `EveryNth`, `Within`); None: the latest five and the
            best of the first metric seen; empty: everything. Tagged snapshots and the newest are always kept.
        config: plain nested values, stored with every snapshot, never restored.
        random: save the random state of Python, NumPy and each framework in use; `resume` restores it.
        overlap: copy what the tracked torch optimizers change beside the next forward and backward pass: `save`
            returns at once and `optimizer.step()` waits. Only for loops that change parameters in `step()` alone: no
            writes through `.data` or NumPy views, and no EMA swap before `handle.staged()`. The first two saves copy at
            once, and look whether that holds. CUDA tensors go to pinned memory on a stream of their own; nobody has
            measured that on a device yet.
        donated: False says that JAX arrays given to `save` are not donated to the next step: they are held, not copied.
            One that is donated all the same fails its save; nothing torn is committed.
        signals: names of signals after which the step is finished, saved, and `should_stop` is True.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str] | Repository,
        *,
        save: Sequence[SavePolicy] = (),
        keep: Sequence[Retention] | None = None,
        config: Any = None,
        random: bool = True,
        overlap: bool = False,
        donated: bool = True,
        signals: Sequence[str] = (),
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"CheckpointManager needs a Checkpoint, not {type(checkpoint).__name__}: "
                "CheckpointManager(Checkpoint(model=model), directory)"
            )
        self._checkpoint = checkpoint
        self._repository = directory if isinstance(directory, Repository) else Repository(directory)
        self._save_policies: list[SavePolicy] = check_policies(save, "due", "save")
        self._keep: list[Retention] = check_policies(default_keep() if keep is None else keep, "keep", "keep")
        self._config = decode_config(encode_config(config))  # a copy: the caller may change its own
        self._random = random
        self._donated = donated
        self._started = datetime.now(UTC)
        self._signals = StopSignals(signals)
        self._ranks = Ranks()
        self._staging = Staging()
        self._overlap = Overlap(expand_all(checkpoint.objects)) if overlap else None
        self._pending: Handle | None = None
        self._saving = threading.Lock()  # callers in several threads take turns
        self._history: list[Snapshot] | None = None  # the lineage; None before it is known what to continue
        self._newest: int | None = None  # the repository's newest number, as far as this manager knows
        self._step: int | None = None  # the step of `steps` that is running
        self._is_last = False
        self._finished_step: int | None = None
        self._closed = False
        self._reserved = False  # whether staging memory was seen to
        self._garbage = False  # whether something was pruned and not collected yet

    def __repr__(self) -> str:
        return f"CheckpointManager({self._repository.location!r})"

    @property
    def repository(self) -> Repository:
        """The repository it saves into."""
        return self._repository

    @property
    def should_stop(self) -> bool:
        """Whether a signal asked the run to stop: the step that it interrupted is saved by the next `save`."""
        return self._signals.arrived

    # -- the loop --------------------------------------------------------------------------------------------------

    def steps(self, total: int, *, fresh: bool = False, keep_live: Sequence[str] = ()) -> Iterator[int]:
        """Count steps from where the run was killed, or from 0, up to `total`; `save` inside needs no step.

        The last step is saved whatever the policies say; after a signal the loop ends with the step saved.

        Args:
            total: number of steps of the whole run.
            fresh: start a new lineage instead of resuming.
            keep_live: see `resume`.
        """
        total = check_total(total)
        start = self.resume(fresh=fresh, keep_live=keep_live)
        try:
            for step in range(start, total):
                self._step, self._is_last = step, step == total - 1
                yield step
                stop = self._ranks.any(self.should_stop) if self._signals.watching else False
                if (stop or self._is_last) and self._finished_step != step and not self._checkpoint.immutable:
                    self.save(force=True)
                if stop:
                    break
        finally:
            self._step, self._is_last = None, False
        self._signals.restore()
        self.wait()  # not after `break`: an error raised while a generator is closed would be lost

    def resume(self, *, fresh: bool = False, keep_live: Sequence[str] = ()) -> int:
        """Restore the newest whole snapshot, random state included, and return the step to do next (0 if none).

        Falls back over damaged snapshots, and says what it restored and what it passed over.

        Args:
            fresh: restore nothing and start a new lineage.
            keep_live: names, globs or `optimizer.lr`, that keep what the new run set.

        Raises:
            MismatchError: the objects are not those that were saved; nothing was changed.
            CorruptionError: there are snapshots, but none is whole; nothing was changed.
        """
        self._check_open()
        patterns = check_patterns("keep_live", keep_live)
        newest = self._ranks.decide(self._look, str, int)
        self._newest = None if newest < 0 else newest
        if fresh or self._newest is None:
            self._history = []
            self._reserve()
            return 0
        snapshots, damaged = self._repository.history()
        # Of the listing that is restored from: whoever committed before it is continued, who comes after it conflicts.
        self._newest = max((*snapshots, *damaged), default=newest)
        resumption = Resumption(self._checkpoint, self._repository, patterns, self._random, self._config, self._ranks)
        restored, report = resumption.run(snapshots, damaged)
        self._history = lineage(snapshots, restored.number)
        announce(str(report))
        self._reserve()
        return restored.step + 1

    def should_save(self, step: int, metrics: Mapping[str, Any] | None = None) -> bool:
        """Whether `save(step, metrics)` would save."""
        step = check_step(step)
        if not self._save_policies or self._is_last or self.should_stop:
            return True
        numbers = check_metrics(metrics)
        moment = Moment(step, numbers, datetime.now(UTC), self._started)
        return any(policy.due(moment, self._lineage_with_pending()) for policy in self._save_policies)

    def save(
        self,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
        tags: Sequence[str] = (),
        **values: Any,
    ) -> Handle | None:
        """Save in the background: `step`, counted from 0, is finished. Returns when the live objects may change.

        One save is on its way at most, and one copy of the state in memory: where the save before is not durable yet,
        this waits for it, so a disk that is slower than the policies slows training down. To skip instead, call it
        only `if handle is None or handle.done`.

        Args:
            step: by default the step that `steps` counts, else one more than the last saved.
            metrics: name → number.
            force: save whatever the policies say.
            tags: names for the snapshot; tagged snapshots are never pruned.
            **values: new values of immutable trees, by tracked name.

        Returns:
            A handle with `staged()` and `result()`, or None if no policy was due.

        Raises:
            ExistsError: the folder has snapshots and `resume()` was not called.
            SafepointError: the save before failed in the background; this one was not begun.
            UnsupportedError: something cannot be captured; named by its path.
        """
        with self._saving:
            self._checkpoint.update(values)  # also where no policy is due: `checkpoint["params"]` is the newest value
            if step is None:
                step = self._step if self._step is not None else self._last_step() + 1
            self._check_open()
            step = check_step(step)
            numbers = check_metrics(metrics)
            tags = check_tags(tags)
            due = self._ranks.decide(lambda: self._is_due(step, numbers, force=force or bool(tags)), str, "True".__eq__)
            if not due:
                self._reserve()
                return None
            started = time.perf_counter()
            with no_collection():
                tree = self._ranks.gather(
                    lambda: self._checkpoint.capture(values), self._checkpoint.objects, random=self._random
                )
                handle = self._begin(self._stage(tree), step, numbers, tags, started)
            if self.should_stop:
                self.wait()  # whoever sent the signal will not wait for long
            return handle

    def restore(self, at: str | int = "latest", *, select: Sequence[str] | None = None) -> Report:
        """Put a snapshot into the live objects, after pending saves; the lineage stays as it is.

        Raises:
            As `Checkpoint.restore`.
        """
        self.wait()
        return self._checkpoint.restore_from(
            self._repository,
            at,
            Options(select=None if select is None else check_patterns("select", select)),
            view=lambda source: self._ranks.view(source, self._checkpoint.objects),
        )

    def wait(self) -> None:
        """Return when every save begun is durable.

        Raises:
            SafepointError: one failed.
        """
        self._wait_pending()

    def close(self) -> None:
        """Wait for pending saves, free staging memory and give signal handlers back. Nothing is saved afterwards.

        Raises:
            SafepointError: a save failed.
        """
        self._closed = True
        try:
            self.wait()
        finally:
            self._signals.restore()
            if self._overlap is not None:
                self._overlap.close()
            self._staging.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            logger.error("a save failed as well: %s", failure)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _stage(self, tree: StateTree) -> Staged:
        """A copy of the live state, done or, with `overlap`, on its way."""
        self._reserved = True
        hold = not self._donated
        if self._overlap is None:
            return self._staging.copy(tree, hold=hold)
        return self._overlap.begin(self._staging.copy(tree, hold=hold, later=self._overlap.later(tree)))

    def _begin(
        self, staged: Staged, step: int, metrics: Mapping[str, float], tags: Sequence[str], started: float
    ) -> Handle:
        """Start the thread that commits a copy; the copy itself goes on, whatever happens."""
        self._finished_step = step
        future: Future[Snapshot | None] = Future()
        try:
            # A thread a save, which is not a daemon, so the interpreter waits for it at exit.
            threading.Thread(
                target=_resolve, args=(future, self._commit, staged, step, metrics, tags), name="safepoint-save"
            ).start()
            self._pending = Handle(
                step,
                future,
                time.perf_counter() - started,
                Snapshot.expected(step, datetime.now(UTC), metrics),
                staged.done,
            )
            return self._pending
        except RuntimeError as error:
            raise StoreError(
                f"step {step} is not saved: no thread can be started for it",
                found=error,
                hint="raise the limit of processes (ulimit -u, or the container's), or start fewer workers",
            ) from error
        finally:
            staged.go_on()  # the next optimizer step waits for the copy

    def _reserve(self) -> None:
        """Once, before the first save: get its memory beside the training step that comes next."""
        if not self._reserved and self._ranks.commits and self._donated:
            self._staging.reserve(self._checkpoint.expected_bytes())
            self._reserved = True

    def _commit(self, staged: Staged, step: int, metrics: Mapping[str, float], tags: Sequence[str]) -> Snapshot | None:
        """In the background: commit, then prune and collect; None where another process commits."""
        staged.done.result()
        if not self._ranks.commits:
            return None
        started = time.perf_counter()
        history = self._lineage()
        try:
            snapshot = self._repository.commit(
                staged.tree,
                step=step,
                metrics=metrics,
                config=self._config,
                tags=tags,
                parent=history[-1].number if history else None,
                newest=self._newest,
                environment=environment(),
            )
        except Exception as error:
            logger.error("saving step %s failed: %s", step, error)
            raise
        self._newest = snapshot.number
        history.append(snapshot)
        log_saved(self._repository, snapshot, time.perf_counter() - started)
        self._retain()
        return snapshot

    def _retain(self) -> None:
        """Prune and collect; what cannot be done now is done after the next save."""
        if not self._keep:
            return
        try:
            self._garbage |= bool(self._repository.prune(self._keep, dry_run=False))
            if self._garbage:
                self._repository.collect()
                self._garbage = False
        except ConflictError:
            logger.debug("%s is in use: collecting after the next save", self._repository.location)
        except SafepointError as error:  # the snapshot is durable all the same: its handle must not say otherwise
            announce(f"nothing was collected: {error}", warning=True)

    def _is_due(self, step: int, metrics: Mapping[str, float], *, force: bool) -> bool:
        """Whether to save now; raises what the save before, or the history, has against it."""
        self._raise_pending()
        self._check_lineage()
        if not (force or self.should_save(step, metrics)):
            return False
        self._wait_pending()
        return True

    def _look(self) -> int:
        """Wait for pending saves; the repository's newest number, or -1."""
        self.wait()
        if not self._repository.exists:
            if self._repository.store.exists():
                _ = self._repository.id  # raises: a folder with something else in it, or a repository that lost its id
            return -1
        snapshots, damaged = self._repository.history()
        return max((*snapshots, *damaged), default=-1)

    def _lineage(self) -> list[Snapshot]:
        return [] if self._history is None else self._history

    def _lineage_with_pending(self) -> list[Snapshot]:
        """The lineage as policies see it: a save that is on its way counts."""
        history, pending = self._lineage(), self._pending
        if pending is None or (history and history[-1].step >= pending.step):
            return history
        return [*history, pending.expected]

    def _last_step(self) -> int:
        if self._pending is not None:
            return self._pending.step
        history = self._lineage()
        return history[-1].step if history else -1

    def _check_open(self) -> None:
        if self._closed:
            raise UnsupportedError(
                f"this manager of {self._repository.location} was closed", hint="make a new one, and call resume()"
            )

    def _check_lineage(self) -> None:
        """The first save of a manager that did not resume must not mix its history into another's."""
        if self._history is not None:
            return
        if self._repository.exists and self._repository.history() != ({}, {}):
            raise ExistsError(
                f"{self._repository.location} has snapshots of another run",
                expected="an empty repository, or a manager that resumed",
                hint="call manager.resume() to continue it, resume(fresh=True) to start a new lineage, or choose "
                "another path",
            )
        self._history = []

    def _raise_pending(self) -> None:
        if self._pending is not None and self._pending.done:
            self._wait_pending()

    def _wait_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.raise_error()
        except BaseException:
            self._staging.free()  # there may never be another save
            raise


def _resolve(future: Future[Snapshot | None], function: Callable[..., Snapshot | None], *arguments: Any) -> None:
    """Give a future what a function returns or raises."""
    try:
        future.set_result(function(*arguments))
    except BaseException as error:  # noqa: BLE001 — it is the future's to raise
        arguments = ()
        release(error)
        future.set_exception(error)
