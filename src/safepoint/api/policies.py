"""When to save and what to keep, as pure functions of history.

Invariant: a policy reads no clock and no file; equal histories give equal answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, final

from safepoint.errors import UnsupportedError
from safepoint.repository import Mode, Snapshot, direction, first_metric, ranked

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """The end of a step at which to decide whether to save.

    Attributes:
        step: that was finished, counted from 0.
        metrics: known of it.
        now: current time, aware UTC.
        started: when this process began to train.
    """

    step: int
    metrics: Mapping[str, float]
    now: datetime
    started: datetime


class SavePolicy(Protocol):
    """When to save; any policy of a list suffices."""

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """Whether to save now; `history` is the lineage, oldest first."""
        ...


@final
@dataclass(frozen=True, slots=True)
class EverySteps:
    """Save when `n` steps were finished since the newest snapshot of the lineage, so a resumed run skips none."""

    n: int

    def __post_init__(self) -> None:
        _check(self, self.n)

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """Whether `n` steps are done since the newest snapshot."""
        return moment.step - (history[-1].step if history else -1) >= self.n


@final
@dataclass(frozen=True, slots=True)
class EveryMinutes:
    """Save when `n` minutes of this process passed since the newest snapshot."""

    n: float

    def __post_init__(self) -> None:
        _check(self, self.n)

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """Whether `n` minutes passed; the time a job stood still does not count."""
        since = max(moment.started, history[-1].time) if history else moment.started
        return moment.now - since >= timedelta(minutes=self.n)


@final
@dataclass(frozen=True, slots=True)
class OnBest:
    """Save when a metric is better than in every snapshot of the lineage."""

    metric: str
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        direction(self.metric, self.mode)

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """Whether the metric is a number, and better than before."""
        value = moment.metrics.get(self.metric)
        if value is None or value != value:  # noqa: PLR0124 — NaN
            return False
        best = ranked(history, self.metric, self.mode)
        if not best:
            return True
        smaller = direction(self.metric, self.mode) == "min"
        return value < best[0].metrics[self.metric] if smaller else value > best[0].metrics[self.metric]


@final
@dataclass(frozen=True, slots=True)
class Latest:
    """Keep the newest `n` snapshots."""

    n: int = 1

    def __post_init__(self) -> None:
        _check(self, self.n)

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """Numbers of the newest `n`."""
        del now
        return {snapshot.number for snapshot in history[-self.n :]}


@final
@dataclass(frozen=True, slots=True)
class Best:
    """Keep the best `n` snapshots by a metric (default: the first one that the history saw).

    A snapshot without the metric, or with NaN, is no candidate. While no snapshot at all has the metric, everything is
    kept: its name may be misspelt, or come later.
    """

    n: int = 1
    metric: str | None = None
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        _check(self, self.n)
        direction(self.metric or "", self.mode)

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """Numbers of the best `n`; of equals the older."""
        del now
        metric = self.metric or first_metric(history)
        if metric is None:
            return set()
        if not any(metric in snapshot.metrics for snapshot in history):
            return {snapshot.number for snapshot in history}
        return {snapshot.number for snapshot in ranked(history, metric, self.mode)[: self.n]}


@final
@dataclass(frozen=True, slots=True)
class EveryNth:
    """Keep one snapshot of every `steps` steps: the first of each stretch."""

    steps: int

    def __post_init__(self) -> None:
        _check(self, self.steps)

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """Numbers of the first snapshot of each stretch of `steps` steps."""
        del now
        first: dict[int, int] = {}
        for snapshot in history:
            first.setdefault(snapshot.step // self.steps, snapshot.number)
        return set(first.values())


@final
@dataclass(frozen=True, slots=True)
class Within:
    """Keep the snapshots of the last `hours` hours."""

    hours: float

    def __post_init__(self) -> None:
        _check(self, self.hours)

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """Numbers of those that are young enough."""
        return {snapshot.number for snapshot in history if now - snapshot.time <= timedelta(hours=self.hours)}


def check_policies(policies: Sequence[T], method: str, argument: str) -> list[T]:
    """The policies as a list.

    Raises:
        UnsupportedError: something in it is no policy of this kind, or it is no list.
    """
    if isinstance(policies, str) or not isinstance(policies, Sequence):
        raise UnsupportedError(f"{argument}={policies!r}", expected=f"a list of policies: {argument}=[...]")
    for policy in policies:
        if isinstance(policy, type) or not callable(getattr(policy, method, None)):
            kinds = "EverySteps, EveryMinutes, OnBest" if method == "due" else "Latest, Best, EveryNth, Within"
            raise UnsupportedError(f"{argument}=[{policy!r}]", expected=f"policies such as {kinds}")
    return list(policies)


def default_keep() -> tuple[Latest, Best]:
    """What is kept when nobody says: the latest five, and the best by the first metric seen."""
    return (Latest(5), Best(1))


def _check(policy: object, number: object) -> None:
    if isinstance(number, bool) or not (isinstance(number, int | float) and number > 0):
        is_metric = isinstance(policy, Best) and isinstance(number, str)
        hint = f"the number comes first: Best(1, {number!r})" if is_metric else None
        raise UnsupportedError(f"{policy!r}", expected="a number greater than 0", hint=hint)
