"""What a caller gives with a save, checked before anything is written: step, metrics, tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

from safepoint.errors import UnsupportedError
from safepoint.repository.config import number
from safepoint.repository.history import check_tag

_STEPS = 1 << 63


def check_step(step: object) -> int:
    """`step` as an int; NumPy's integers are ones too.

    Raises:
        UnsupportedError: it is none from 0 to 2**63 - 1, or a bool, which is no count.
    """
    expected = "a whole number, counted from 0"
    try:
        whole = index(step)  # type: ignore[arg-type]  # whatever it is, this tells
    except TypeError as error:
        raise UnsupportedError(f"step={step!r}", expected=expected) from error
    if isinstance(step, bool) or not 0 <= whole < _STEPS:
        raise UnsupportedError(f"step={step!r}", expected=f"{expected}, below 2**63")
    return whole


def check_metrics(metrics: object) -> dict[str, float]:
    """Metrics as numbers by name.

    Raises:
        TypeError: it is no mapping.
        UnsupportedError: a value is no number, or a name no text.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must map names to numbers, not {type(metrics).__name__}: metrics={{'loss': 0.5}}")
    return {name: number(name, value) for name, value in metrics.items()}


def check_tags(tags: object) -> tuple[str, ...]:
    """Tags, each once; a single one may stand alone.

    Raises:
        TypeError: it is no list of text.
        UnsupportedError: a word is no tag.
    """
    several: list[Any] = [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, Iterable) else [None]
    if not all(isinstance(tag, str) for tag in several):
        raise TypeError(f"tags must be a list of text, not {tags!r}: tags=['start']")
    return tuple(dict.fromkeys(check_tag(tag) for tag in several))
