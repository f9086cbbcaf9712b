"""`KerasCheckpoint`: one callback that saves `fit` in the background and goes on where it was killed.

Invariant: a snapshot is taken between batches only and holds all that the next one depends on; no error is swallowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import keras

from safepoint.api.announce import announce
from safepoint.api.checkpoint import Checkpoint
from safepoint.api.manager import CheckpointManager
from safepoint.api.plan import Options
from safepoint.api.policies import Latest, Moment, SavePolicy
from safepoint.errors import UnsupportedError
from safepoint.integrations.keras.monitor import Monitor
from safepoint.integrations.keras.progress import Progress
from safepoint.repository import Repository, Retention, Snapshot


@final
class KerasCheckpoint(keras.callbacks.Callback):
    """Saves all that `fit` depends on; the same `fit` again goes on at the next batch, as if it had never been killed.

    `model.fit(x, y, epochs=10, callbacks=[safepoint.KerasCheckpoint("runs/digits", monitor="val_loss")])`: run the
    same line again after a kill. Kept are model, optimizer, random state, the place in the data, the running metrics,
    the history, and what changed in the plain attributes of the other callbacks (the patience of `EarlyStopping`), or
    their `state_dict()`. It works wherever it stands among the callbacks.

    Steps of the repository are batches that were trained on, counted from 0 over all epochs: `@11` is the moment after
    the twelfth batch. Snapshots at the end of an epoch carry its metrics and its number as the metric `epoch`; those
    within epochs carry none, so `best` is about whole epochs.

    Exact are arrays, tf.data with seeds, `PyDataset`, `DataLoader` and every other data whose order hangs on random
    state, on itself or on the number of the epoch. Where that cannot be seen, resuming says so in a warning.

    Args:
        path: of the repository; one run is one repository.
        monitor: the metric that "best" means; "val_loss" falls back to "loss" where there is no validation.
        mode: "min", "max", or "auto": what Keras knows of the metric, else its name.
        verbose: 1 says each save.
        save_best_only: save only at the end of epochs in which `monitor` improved.
        save_freq: "epoch", or a number of batches, counted over epochs as `ModelCheckpoint` does (with
            `steps_per_execution`, looked at after each execution). One that falls on the last batch of an epoch is
            made at the end of that epoch, after validation.
        save: policies in the place of `save_freq="epoch"`, any of which suffices, looked at after each batch:
            `EveryMinutes(10)`, `EverySteps(500)` (batches), `OnBest(metric)` (at the end of epochs).
            Except with `save_best_only`, the end of training is saved whatever they say.
        keep: policies for what is kept; None: the latest five and the best by `monitor`.
        config: stored with every snapshot, never restored.
        signals: names such as "SIGTERM", after which the batch is finished and saved, and training stops.
        fresh: start a new lineage instead of resuming.
        keep_live: names, globs or `optimizer.lr`, that keep what the new run set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Repository,
        monitor: str = "val_loss",
        *,
        mode: Literal["auto", "min", "max"] = "auto",
        verbose: int = 0,
        save_best_only: bool = False,
        save_freq: Literal["epoch"] | int = "epoch",
        save: Sequence[SavePolicy] = (),
        keep: Sequence[Retention] | None = None,
        config: Any = None,
        signals: Sequence[str] = (),
        fresh: bool = False,
        keep_live: Sequence[str] = (),
    ) -> None:
        super().__init__()
        counts = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not counts:
            raise UnsupportedError(f"save_freq={save_freq!r}", expected='"epoch" or a number of batches')
        if save_best_only and (save or save_freq != "epoch"):
            raise UnsupportedError(
                "save_best_only=True excludes save= and a number as save_freq", hint="save=[OnBest(metric)]"
            )
        self._monitor = Monitor(monitor, mode)
        self._path = path
        self._verbose = verbose
        self._save_best_only = save_best_only
        self._save_freq = save_freq
        self._save: list[SavePolicy] = [self._monitor] if save_best_only else list(save)
        self._keep: list[Retention] = [Latest(5), self._monitor] if keep is None else list(keep)
        self._config = config
        self._signals = tuple(signals)
        self._fresh = fresh
        self._keep_live = tuple(keep_live)
        self._manager: CheckpointManager | None = None
        self._progress: Progress | None = None
        self._seen_metrics = False
        self._due = False  # a save fell on the last batch of the epoch
        self._left = False  # a signal ended the epoch in the middle

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the newest whole snapshot, when all other callbacks have begun, and let `fit` start at its epoch.

        Raises:
            MismatchError: the model is not the one that was saved; nothing was changed.
            CorruptionError: there are snapshots, but none is whole.
        """
        del logs
        self._close()  # of a fit() that an error or Ctrl-C ended
        progress = Progress(self, self._between)
        if progress.waits_for_others():
            return  # and is called again
        self._left = self._due = False
        self._progress = progress
        self._checkpoint = Checkpoint(model=self.model, fit=progress)
        self._manager = CheckpointManager(
            self._checkpoint,
            self._path,
            save=self._save or [_Never()],  # with none, every call would save
            keep=self._keep,
            config=self._config,
            signals=self._signals,
        )
        self._manager.resume(fresh=self._fresh, keep_live=self._keep_live)
        start = progress.begin((self.params or {}).get("epochs"))
        self._model._initial_epoch = start or None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """In the interrupted epoch, bring back what its beginning has reset, in other callbacks and in the model."""
        del logs
        manager, progress = self._running()
        if progress.begin_epoch(epoch):
            resumed = manager._lineage()[-1]
            self._checkpoint.restore_from(manager.repository, resumed, Options(keep_live=self._keep_live))
            progress.settle()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save in the background: epoch `epoch` is finished.

        Raises:
            SafepointError: the save before failed in the background.
            UnsupportedError: something cannot be captured, or `monitor` is no metric of this model.
        """
        manager, progress = self._running()
        if self._left:
            return
        metrics = self._metrics(logs or {}, epoch)
        progress.end_epoch(epoch)
        last = progress.is_last_epoch and not self._save_best_only
        every = self._save_freq == "epoch" and not self._save
        if manager.save(progress.step, metrics, force=self._due or every or last) is not None and self._verbose:
            value = metrics.get(self._monitor.metric)
            announce(f"epoch {epoch + 1}: saving" + ("" if value is None else f", {self._monitor.metric} {value:.5f}"))
        self._due = False
        if manager.should_stop:
            announce(f"stopping after epoch {epoch + 1}: a signal asked for it, and the epoch is saved")
            self._model.stop_training = True

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Return when the last save is durable.

        Raises:
            SafepointError: a save failed.
        """
        del logs
        self.model._initial_epoch = None  # another fit() looks for itself
        self._close()

    def _between(self) -> None:
        """A batch is done, and `fit` asks for the next one of the same epoch."""
        manager, progress = self._running()
        batches = progress.batches
        assert batches is not None
        counted = isinstance(self._save_freq, int) and progress.since_save >= self._save_freq
        known = batches.size is not None
        if not (known or counted or manager.should_save(progress.step)):
            return  # data of unknown length is asked for its end only if something is to be saved
        if batches.is_over():
            self._due |= counted
            return
        stops = manager.should_stop
        if manager.save(progress.step, force=counted) is not None and self._verbose:
            announce(f"{progress.where}: saving")
        if stops:
            announce(f"stopping after {progress.where}: a signal asked for it, and the batch is saved")
            self._model.stop_training = batches.leave = self._left = True

    def _running(self) -> tuple[CheckpointManager, Progress]:
        assert self._manager is not None
        assert self._progress is not None
        return self._manager, self._progress

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _metrics(self, logs: Mapping[str, Any], epoch: int) -> dict[str, float]:
        """The epoch's metrics, the monitored one first: `@best` means the first that a history saw."""
        metrics = {str(name): float(value) for name, value in logs.items()}
        if not self._seen_metrics:
            self._seen_metrics = True
            self._check_monitor(list(metrics))
            self._monitor.learn(self._model)
        name = self._monitor.metric
        metrics = {name: metrics[name], **metrics} if name in metrics else metrics
        return {**metrics, "epoch": metrics.get("epoch", float(epoch))}

    def _check_monitor(self, names: list[str]) -> None:
        name = self._monitor.metric
        if name in names:
            return
        if name == "val_loss" and "loss" in names and not self._save_best_only:
            self._monitor.metric = "loss"
            announce("no validation data, so no val_loss: the best epoch is the one with the lowest loss")
            return
        raise UnsupportedError(
            f"monitor={name!r} is no metric of this model",
            expected=f"one of {', '.join(names)}",
            hint="validation_data= makes the val_ metrics" if name.startswith("val_") else None,
        )


@final
class _Never:
    """A policy that leaves it to `force`."""

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """No."""
        del moment, history
        return False
