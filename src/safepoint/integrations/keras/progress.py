"""How far a `fit` is: what is tracked beside the model, and brought back in the right order when it resumes.

Invariant: other callbacks see each batch once; what they and the running metrics knew is back before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import keras
import numpy as np

from safepoint.api.announce import announce
from safepoint.integrations.keras import randomness
from safepoint.integrations.keras.batches import Batches
from safepoint.integrations.keras.data import Data
from safepoint.integrations.keras.others import Others
from safepoint.integrations.keras.running import running_fit


@final
class Progress:
    """The place of one `fit`, and the state of what trains beside the model; tracked by its `state_dict`.

    Attributes:
        batches: the data, counted; None in a loop that is not Keras' own, where epochs are all that is seen.
        is_last_epoch: whether the epoch that has ended is the last, or was the last by the will of a callback.
    """

    def __init__(self, callback: keras.callbacks.Callback, between: Callable[[], None]) -> None:
        """Find the `fit` that calls `callback`; nothing of it is changed yet."""
        self._callback = callback
        self._between = between
        self._list, self._epochs = running_fit(callback)
        self.batches: Batches | None = None
        self.is_last_epoch = False
        self._others: Others | None = None
        self._saved: dict[str, Any] | None = None  # what is resumed from
        self._is_midway = False  # whether the first epoch goes on in its middle
        self._random: dict[str, Any] = {}
        self._epoch = 0
        self._num_epochs: int | None = None
        self._stopped: int | None = None
        self._total = 0  # batches done in all, where they cannot be counted
        self._total_saved = 0  # when the newest snapshot was taken

    # -- the order of callbacks ------------------------------------------------------------------------------------

    def waits_for_others(self) -> bool:
        """Make the callback the last of its list; True if it will be called again, after the others have begun.

        The last sees what all others have changed, and can undo what their beginning resets.
        """
        if self._list is None:
            return False
        if self._list.callbacks[-1] is not self._callback:
            self._list.callbacks.append(self._callback)  # the loop that is running comes to it
            return True
        self._list.callbacks = [c for c in self._list.callbacks if c is not self._callback] + [self._callback]
        return False

    # -- resuming --------------------------------------------------------------------------------------------------

    def begin(self, num_epochs: int | None) -> int:
        """Take over the running `fit`, and go on where the restored state was; the epoch to begin with."""
        self._num_epochs = num_epochs
        beside = [] if self._list is None else [c for c in self._list.callbacks if not self._is_mine(c)]
        if self._epochs is not None:
            data = Data(self._epochs)
            beside += data.objects
            self.batches = Batches(self._epochs, data, self._between, self.settle)
        self._others = Others(beside)
        if self._saved is None:
            return 0
        self._random = randomness.captured()
        self._others.restore(self._saved["others"])
        self._epoch, self._total = int(self._saved["epoch"]), int(self._saved["total"])
        self._total_saved = self._total
        self._go_on_in_data(self._saved["batches"])
        return self._announce()

    def begin_epoch(self, epoch: int) -> bool:
        """Whether the epoch that begins is to go on in its middle: then restore all once more, and `settle`."""
        self._epoch = epoch
        midway, self._is_midway = self._is_midway, False
        return midway

    def settle(self) -> None:
        """Undo what the beginning of an epoch did that had begun before."""
        assert self._saved is not None
        assert self._others is not None
        self._others.restore(self._saved["others"])
        self._restore_metrics(self._saved["metrics"])
        randomness.restore(self._random)

    def end_epoch(self, epoch: int) -> None:
        """Epoch `epoch` is over."""
        stopped = bool(self._callback._model.stop_training)
        if self.batches is not None:
            self.batches.end_epoch(stopped=stopped)
        else:
            self._total = max(self._total + 1, _iterations(self._callback._model))
        self._epoch = epoch + 1
        self._stopped = self._num_epochs if stopped else None
        self.is_last_epoch = stopped or (self._num_epochs is not None and epoch + 1 >= self._num_epochs)

    # -- where -----------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Batches done in all."""
        return self._total if self.batches is None else self.batches.total

    @property
    def step(self) -> int:
        """The step that is finished."""
        return max(self.total - 1, 0)

    @property
    def since_save(self) -> int:
        """Batches done since the newest snapshot."""
        return self.total - self._total_saved

    @property
    def where(self) -> str:
        """The place in words."""
        done = 0 if self.batches is None else self.batches.epoch_batches
        return f"batch {done} of epoch {self._epoch + 1}"

    # -- what is tracked -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that `fit` depends on beside model and random state; empty before it began."""
        if self._others is None:
            return {}
        if self._list is not None and self._list._async_train:
            self._list._flush_futures()  # callbacks that run in threads of their own
        model = self._callback.model  # on JAX this brings the state back into the model
        midway = self.batches is not None and self.batches.epoch_batches > 0
        self._total_saved = self.total
        return {
            "epoch": self._epoch,
            "total": self.total,
            "stopped": self._stopped,
            "batches": None if self.batches is None else self.batches.state(),
            "metrics": [_array(v) for v in model.metrics_variables] if midway else [],
            "others": self._others.capture(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what was saved until `fit` has come to the place where it is due."""
        self._saved = dict(state)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _is_mine(self, callback: Any) -> bool:
        return callback is self._callback or isinstance(callback, keras.callbacks.ProgbarLogger)

    def _go_on_in_data(self, saved: Mapping[str, Any] | None) -> None:
        midway = saved is not None and bool(saved["epoch_batches"])
        if self.batches is None or saved is None:
            if midway:
                _warn("batches cannot be counted in this loop: the interrupted epoch begins again")
            return
        if midway and saved["size"] != self.batches.size:
            now = self.batches.size
            _warn(f"an epoch has {now} batches now and had {saved['size']}: the interrupted one begins again")
            self.batches.total = int(saved["total"])
            return
        doubt = self.batches.go_on(saved)
        self._is_midway = midway
        if doubt is not None:
            _warn(f"{doubt}; the number of the next batch is right, its content may not be")

    def _announce(self) -> int:
        """Say where the run goes on; the epoch to begin with."""
        assert self._saved is not None
        start, epochs = self._epoch, self._num_epochs
        if epochs is not None and start < epochs and self._saved["stopped"] == epochs:
            announce(
                f"a callback stopped this run after epoch {start}: for more, raise epochs=; to train anew, fresh=True"
            )
            return epochs
        if epochs is not None and start >= epochs:
            announce(f"all {start} epochs are done: for more, raise epochs=; to train anew, fresh=True or another path")
            return start
        of = "" if epochs is None else f" of {epochs}"
        if self._is_midway and self.batches is not None:
            known = "" if self.batches.size is None else f" of {self.batches.size}"
            announce(f"resuming in epoch {start + 1}{of} after batch {self.batches.epoch_batches}{known}")
        else:
            announce(f"resuming at the start of epoch {start + 1}{of}")
        return start

    def _restore_metrics(self, saved: list[Any]) -> None:
        """The running averages of the epoch; Keras makes their variables at the first batch, on TensorFlow in it."""
        model = self._callback.model
        if len(model.metrics_variables) != len(saved) and hasattr(self._epochs, "_distributed_dataset"):
            model._symbolic_build(data_batch=self._epochs._distributed_dataset.element_spec)
        variables = list(model.metrics_variables)
        if [tuple(v.shape) for v in variables] != [tuple(np.shape(x)) for x in saved]:
            _warn("the model's metrics are others than before: those of this epoch are of its rest only")
            return
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)


def _array(variable: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _iterations(model: Any) -> int:
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return 0 if iterations is None else int(_array(iterations))


def _warn(words: str) -> None:
    announce(f"not exact: {words}", warning=True)
