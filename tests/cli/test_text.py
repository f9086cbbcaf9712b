"""Sizes, times and numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from safepoint.cli.text import ago, count, metric, size

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "num_bytes, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (999_999, "1.0 MB"), (1_650_000_000, "1.6 GB"),
     (10**18, "1000 PB")],
)  # fmt: skip
def test_size(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "just now"), (30, "30 seconds ago"), (60, "1 minute ago"), (7200, "2 hours ago"), (-5, "just now")],
)
def test_ago(seconds: int, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_count_and_metric() -> None:
    assert (count(1, "step"), count(1200, "step")) == ("1 step", "1,200 steps")
    assert metric(0.123456) == "0.1235"
