"""The monitored metric: its direction, and which snapshot is the best by it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, final

from safepoint.api.policies import Best, Moment, OnBest
from safepoint.repository import Snapshot


@final
class Monitor:
    """The monitored metric as a policy: its direction is known once `fit` has made the model's metrics."""

    def __init__(self, metric: str, mode: Literal["auto", "min", "max"]) -> None:
        OnBest(metric, mode)  # checks the mode
        self.metric = metric
        self._mode = mode

    def learn(self, model: Any) -> None:
        """In mode "auto", go by what Keras knows of the metric; else its name decides.

        Source: `keras.src.callbacks.monitor_callback.MonitorCallback._set_monitor_op`.
        """
        name = self.metric.removeprefix("val_")
        if self._mode != "auto":
            return
        for group in getattr(model, "metrics", ()):
            for metric in getattr(group, "metrics", None) or (group,):
                if metric.name == name and getattr(metric, "_direction", None) in {"up", "down"}:
                    self._mode = "max" if metric._direction == "up" else "min"

    def due(self, moment: Moment, history: Sequence[Snapshot]) -> bool:
        """Whether the metric is better than in every snapshot before."""
        return OnBest(self.metric, self._mode).due(moment, history)

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        """The best snapshot. Those within epochs have no metrics, and are not kept for the sake of a later one."""
        if not any(snapshot.metrics for snapshot in history):
            return set()
        return Best(1, self.metric, self._mode).keep(history, now)
