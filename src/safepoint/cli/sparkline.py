"""A row of numbers as a row of small bars, as wide as asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇"  # a full block would touch the line above
_ASCII_BARS = ".:-=+*#"
_NO_NUMBER = "✗"
_ASCII_NO_NUMBER = "x"


def sparkline(values: Sequence[float], *, width: int, ascii_only: bool = False) -> str:
    """One character a value, or one for the mean of several where there are more than `width`.

    The lowest bar is the smallest value. A stretch in which one is NaN or infinite is a cross, never a bar.
    """
    bars, cross = (_ASCII_BARS, _ASCII_NO_NUMBER) if ascii_only else (_BARS, _NO_NUMBER)
    columns = min(width, len(values))
    means = [_mean(values[len(values) * i // columns : len(values) * (i + 1) // columns]) for i in range(columns)]
    finite = [mean for mean in means if mean is not None]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(cross if mean is None else bars[_level(mean, low, high, len(bars))] for mean in means)


def _mean(values: Sequence[float]) -> float | None:
    mean = math.fsum(value / len(values) for value in values) if all(map(math.isfinite, values)) else math.nan
    return mean if math.isfinite(mean) else None


def _level(value: float, low: float, high: float, levels: int) -> int:
    """Halved, so that the span of the largest doubles is a number too; a row of equals is a row of lowest bars."""
    span = high / 2 - low / 2
    return min(levels - 1, int((value / 2 - low / 2) / span * levels)) if span > 0 else 0
