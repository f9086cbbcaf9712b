from __future__ import annotations

import collections
import os
import signal
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from tests.keras.trees import X, Y, sequential

import safepoint


class Stop(keras.callbacks.Callback):
    """What a kill is to `fit`, in the same process: raises after a number of batches in all."""

    def __init__(self, after):
        super().__init__()
        self.after = after
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.after:
            raise KeyboardInterrupt


def steps(path: Path) -> list[int]:
    return [snapshot.step for snapshot in safepoint.Repository(path).snapshots]


def interrupted(path: Path, after: int, **fit):
    """The `fit` with a checkpoint that is interrupted after `after` batches, to be run again."""
    saves = {name: fit.pop(name) for name in ("save_freq", "save", "keep", "signals") if name in fit}
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[safepoint.KerasCheckpoint(path, "loss", **saves), Stop(after)], **fit)


def run(model=None, **fit):
    keras.utils.set_random_seed(3)
    model = model or sequential()
    fit = {"x": X, "y": Y, "batch_size": 4, "epochs": 3, "verbose": 0, **fit}
    if fit["y"] is None:
        del fit["y"], fit["batch_size"]
    try:
        return model, model.fit(**fit)
    finally:
        settle()


def settle():
    """A kill ends a save as well; here it goes on in its thread, and whoever resumes meanwhile may find it or not."""
    for thread in threading.enumerate():
        if thread.name.startswith("safepoint-save"):
            thread.join()


def test_fit_again_has_nothing_to_do_and_more_epochs_go_on(tmp_path: Path, caplog):
    caplog.set_level("INFO", "safepoint")

    def fit(epochs):
        keras.utils.set_random_seed(3)
        model = sequential()
        history = model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run")])
        return model, history.history

    one, history = fit(2)
    again, same_history = fit(2)
    assert same_history == history
    assert (one.get_weights()[0] == again.get_weights()[0]).all()
    more, longer = fit(3)
    assert longer["loss"][:2] == history["loss"]
    assert len(longer["loss"]) == 3
    keras.utils.set_random_seed(3)
    whole = sequential()
    assert whole.fit(X, Y, epochs=3, verbose=0).history == longer
    assert more._initial_epoch is None
    assert "all 2 epochs are done" in caplog.text


def test_the_best_epoch_is_the_monitored_metrics(tmp_path: Path):
    model = sequential()
    model.compile("adam", "mse", metrics=["mae"])
    checkpoint = safepoint.KerasCheckpoint(tmp_path / "run", monitor="mae", keep=[])
    history = model.fit(X, Y, epochs=4, verbose=0, callbacks=[checkpoint]).history
    best = safepoint.Repository(tmp_path / "run").resolve("best")
    assert best.step == history["mae"].index(min(history["mae"]))
    other = sequential(None)
    safepoint.Checkpoint(model=other).restore(tmp_path / "run", at="best")


def test_save_best_only_and_auto_mode(tmp_path: Path):
    class Up(keras.metrics.Metric):
        """Better is greater, whatever its name says."""

        _direction = "up"

        def __init__(self):
            super().__init__(name="odd_loss_of_nothing")
            self.value = self.add_weight(name="value", initializer="zeros")
            self.sign = -1.0

        def update_state(self, *_, **__):
            self.value.assign_add(1.0)

        def reset_state(self):
            pass

        def result(self):
            return self.value * 1.0

    model = sequential()
    model.compile("adam", "mse", metrics=[Up()])
    checkpoint = safepoint.KerasCheckpoint(tmp_path / "run", "odd_loss_of_nothing", save_best_only=True, keep=[])
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[checkpoint])
    assert len(safepoint.Repository(tmp_path / "run").snapshots) == 3


def test_an_unknown_metric_is_refused_and_val_loss_falls_back(tmp_path: Path):
    with pytest.raises(safepoint.UnsupportedError, match="no metric of this model"):
        sequential().fit(X, Y, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "a", "accuracy")])
    best = safepoint.KerasCheckpoint(tmp_path / "b", save_best_only=True)
    with pytest.raises(safepoint.UnsupportedError, match="validation_data"):
        sequential().fit(X, Y, verbose=0, callbacks=[best])
    sequential().fit(X, Y, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "c")])
    assert len(safepoint.Repository(tmp_path / "c").snapshots) == 1


def test_a_step_is_a_batch_and_policies_count_them(tmp_path: Path):
    run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", save=[safepoint.EverySteps(3)], keep=[])])
    assert steps(tmp_path / "run") == [2, 5, 8, 11]
    run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "epochs", keep=[])])
    assert steps(tmp_path / "epochs") == [3, 7, 11]


def test_only_whole_epochs_have_metrics_so_the_best_is_one(tmp_path: Path):
    _, history = run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss", save_freq=1, keep=[])])
    repository = safepoint.Repository(tmp_path / "run")
    assert [s.step for s in repository.snapshots if s.metrics] == [3, 7, 11]
    assert [s.metrics["epoch"] for s in repository.snapshots if s.metrics] == [0, 1, 2]
    losses = history.history["loss"]
    assert repository.resolve("best").step == 4 * losses.index(min(losses)) + 3


def test_what_is_kept_in_the_first_epoch_is_not_everything(tmp_path: Path):
    interrupted(tmp_path / "run", 4, batch_size=2, save_freq=1, keep=None)
    assert len(safepoint.Repository(tmp_path / "run").snapshots) <= 5
    interrupted(tmp_path / "more", 8, batch_size=2, save_freq=1, keep=None)
    assert len(safepoint.Repository(tmp_path / "more").snapshots) <= 6


def test_batches_are_counted_over_epochs_as_model_checkpoint_does(tmp_path: Path):
    run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", save_freq=3, keep=[])])
    assert steps(tmp_path / "run") == [2, 5, 8, 11]
    model = sequential()
    model.compile("adam", "mse", steps_per_execution=2)
    run(model, callbacks=[safepoint.KerasCheckpoint(tmp_path / "two", save_freq=3, keep=[])])
    assert steps(tmp_path / "two") == [3, 7, 11]  # looked at after each execution of two batches


@pytest.mark.parametrize("save_freq", [0, -1, True, "batch", 2.5])
def test_a_frequency_that_is_none_is_refused(save_freq, tmp_path: Path):
    with pytest.raises(safepoint.UnsupportedError, match="number of batches"):
        safepoint.KerasCheckpoint(tmp_path, save_freq=save_freq)


def test_minutes_pass_within_epochs_too(tmp_path: Path):
    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.params["epochs"] and batch == 1:
                time.sleep(0.1)

    saves = safepoint.KerasCheckpoint(tmp_path / "run", save=[safepoint.EveryMinutes(0.05 / 60)], keep=[])
    run(epochs=1, callbacks=[saves, Slow()])
    assert 1 in steps(tmp_path / "run")


def test_twenty_optimizer_steps_are_twenty(tmp_path: Path):
    interrupted(tmp_path / "run", 13, epochs=5, save_freq=1)
    model, history = run(epochs=5, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss", save_freq=1)])
    whole, same = run(epochs=5)
    assert int(model.optimizer.iterations) == int(whole.optimizer.iterations) == 20
    assert history.history == same.history
    assert all((a == b).all() for a, b in zip(model.get_weights(), whole.get_weights(), strict=True))


def test_a_model_without_a_first_batch_yet_gets_its_metrics_back(tmp_path: Path):
    def model():
        made = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
        made.compile("adam", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
        return made

    keras.utils.set_random_seed(3)
    first = model()
    interrupted(tmp_path / "run", 6, model=first, save_freq=1)
    _, history = run(model(), callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss")])
    _, same = run(model())
    assert history.history == same.history


def test_a_callback_that_ended_training_ends_it_again(tmp_path: Path):
    def fit(epochs):
        stop = keras.callbacks.EarlyStopping("loss", min_delta=100, restore_best_weights=True)
        callbacks = [safepoint.KerasCheckpoint(tmp_path / "run", "loss"), stop]
        return run(epochs=epochs, callbacks=callbacks)

    model, history = fit(5)
    assert history.epoch == [0, 1]
    again, same = fit(5)
    assert same.history == history.history
    assert (again.get_weights()[0] == model.get_weights()[0]).all()
    _, longer = fit(6)
    assert longer.epoch == [0, 1, 2]  # its patience is still over


def test_callbacks_keep_their_settings_and_get_their_state_back(tmp_path: Path):
    class Mine(keras.callbacks.Callback):
        def __init__(self, setting):
            super().__init__()
            self.setting = setting
            self.counts = collections.Counter()
            self.recent = collections.deque(maxlen=2)
            self.largest = np.zeros(2)
            self.tags = set()

        def on_train_batch_end(self, batch, logs=None):
            self.counts[batch] += 1
            self.recent.append(logs["loss"])
            self.largest[0] = max(self.largest[0], logs["loss"])
            self.tags.add(batch % 2)

    class Spoken(Mine):
        def state_dict(self):
            return {"counts": [self.counts[i] for i in range(4)]}

        def load_state_dict(self, state):
            self.loaded = state["counts"]

    one, two = Mine(1), Spoken(1)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss", save_freq=1), one, two, Stop(6)])
    seen = dict(one.counts), list(one.recent)[:1], set(one.tags)
    other, spoken = Mine(2), Spoken(2)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[other, spoken, Stop(6), safepoint.KerasCheckpoint(tmp_path / "run", "loss", save_freq=1)])
    assert other.setting == 2
    assert type(other.counts) is collections.Counter
    assert other.recent.maxlen == 2
    assert dict(other.counts) == seen[0]  # five batches restored, the sixth done again
    assert other.tags == seen[2]
    assert spoken.loaded == [2, 1, 1, 1]


def test_state_that_cannot_be_kept_is_named_once(tmp_path: Path, caplog):
    class Holder(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.lock = threading.Lock()

    caplog.set_level("INFO", "safepoint")
    run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss"), Holder()])
    assert len([r for r in caplog.records if "Holder.lock" in r.message]) == 1


def test_a_signal_ends_the_epoch_after_the_batch_and_the_run_goes_on_exactly(tmp_path: Path):
    class Ask(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    saves = safepoint.KerasCheckpoint(tmp_path / "run", "loss", signals=["SIGTERM"])
    run(callbacks=[saves, Ask()])
    assert steps(tmp_path / "run") == [1]
    model, history = run(callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss")])
    whole, same = run()
    assert history.history == same.history
    assert (model.get_weights()[0] == whole.get_weights()[0]).all()


def test_other_batches_than_before_begin_the_epoch_again_and_it_says_so(tmp_path: Path, caplog):
    interrupted(tmp_path / "run", 6, save_freq=1)
    run(batch_size=8, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run", "loss")])
    assert "an epoch has 2 batches now and had 4" in caplog.text


def test_another_model_is_refused(tmp_path: Path):
    sequential().fit(X, Y, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run")])
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(9), keras.layers.Dense(2)])
    other.compile("adam", "mse")
    with pytest.raises(safepoint.MismatchError):
        other.fit(X, Y, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run")])


def test_an_error_of_the_background_surfaces(tmp_path: Path, monkeypatch):
    def fail(*_, **__):
        raise safepoint.StoreError("the disk is full")

    monkeypatch.setattr(safepoint.Repository, "commit", fail)
    with pytest.raises(safepoint.StoreError):
        sequential().fit(X, Y, epochs=3, verbose=0, callbacks=[safepoint.KerasCheckpoint(tmp_path / "run")])


def test_a_fit_that_was_interrupted_goes_on_in_the_same_process(tmp_path: Path):
    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    checkpoint = safepoint.KerasCheckpoint(tmp_path / "run")
    model = sequential()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[checkpoint, Break()])
    history = model.fit(X, Y, epochs=4, verbose=0, callbacks=[checkpoint])
    assert history.epoch == [0, 1, 2, 3]
    assert steps(tmp_path / "run") == [0, 1, 2, 3]
