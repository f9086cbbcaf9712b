"""What a running `fit` holds and hands to no callback: its list of callbacks, and the iterator over its epochs.

Keras passes a callback neither. Both are variables of the functions that called it, so they are looked for there, by
type; where they are not (a loop of the user's that calls callbacks itself), the caller does without.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

_USED = ("_enumerate_iterator", "_get_iterator", "_current_iterator", "_steps_seen", "data_adapter", "steps_per_epoch")


def running_fit(callback: keras.callbacks.Callback) -> tuple[Any, Any]:
    """The `CallbackList` that holds `callback` and the `EpochIterator` of the `fit` that calls it, or None for each."""
    frame, mine = inspect.currentframe(), None
    try:
        while frame is not None:
            found = list(frame.f_locals.values())
            lists = [x for x in found if isinstance(x, keras.callbacks.CallbackList)]
            mine = mine or next((x for x in lists if any(other is callback for other in x.callbacks)), None)
            epochs = next((x for x in found if isinstance(x, EpochIterator)), None)
            if mine is not None and epochs is not None:
                return mine, epochs if all(hasattr(epochs, name) for name in _USED) else None
            frame = frame.f_back
    finally:
        del frame  # a frame refers to itself through its variables
    return mine, None
