"""1,797 handwritten digits of 8 x 8 pixels, which scikit-learn brings along; every fifth is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

_DIGITS = load_digits()
_IMAGES = (_DIGITS.images / 16).astype("float32")
_LABELS = _DIGITS.target.astype("int64")
_HELD_OUT = np.arange(len(_LABELS)) % 5 == 4


def training() -> tuple[NDArray[Any], NDArray[Any]]:
    """Images float32[1438, 8, 8] and labels int64[1438]."""
    return _IMAGES[~_HELD_OUT], _LABELS[~_HELD_OUT]


def held_out() -> tuple[NDArray[Any], NDArray[Any]]:
    """Images float32[359, 8, 8] and labels int64[359]."""
    return _IMAGES[_HELD_OUT], _LABELS[_HELD_OUT]
