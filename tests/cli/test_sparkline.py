"""Rows of bars."""

from __future__ import annotations

import math

import pytest

from safepoint.cli.sparkline import sparkline


@pytest.mark.parametrize(
    "values, bars",
    [
        ([], ""),
        ([3.0], "▁"),
        ([1, 1, 1], "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6], "▁▂▃▄▅▆▇"),
        ([8, 0], "▇▁"),
        ([0, math.nan, 1, math.inf], "▁✗▇✗"),
        ([math.nan], "✗"),
        ([-1e308, 1e308], "▁▇"),
    ],
)
def test_one_bar_a_value(values: list[float], bars: str) -> None:
    assert sparkline(values, width=40) == bars


def test_more_values_than_columns_are_averaged_and_a_nan_is_not_lost() -> None:
    assert sparkline([*range(1000)], width=7) == "▁▂▃▄▅▆▇"
    assert sparkline([0.0] * 500 + [math.nan] + [0.0] * 499, width=10).count("✗") == 1


def test_it_speaks_ascii_too() -> None:
    assert sparkline([0, math.nan, 1], width=3, ascii_only=True) == ".x#"
