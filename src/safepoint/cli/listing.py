"""Tensors as flat rows: sorted, measured, for people, as CSV and for programs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safepoint.cli.text import plain, size

if TYPE_CHECKING:
    from rich.console import Console

    from safepoint.api.stats import Stats
    from safepoint.tree import Tensor

NUMBERS = (
    "min", "max", "mean", "std", "norm", "zeros", "nan", "inf", "dead_rows", "dead_columns",
    "q01", "q05", "q25", "q50", "q75", "q95", "q99",
)  # fmt: skip
# What people see → how wide a terminal is, beside names and what is wrong, that has room for it.
_WORDS = {"mean": 65, "std": 0, "range": 0, "norm": 0, "5 %": 95, "median": 95, "95 %": 95}
_PROBLEM_WIDTH = 14
_LONG_NAME = 40  # longer ones fold


def in_order(tensors: Mapping[str, Tensor], stats: Mapping[str, Stats] | None, sort: str | None) -> dict[str, Tensor]:
    """By name, size or norm, the largest first; with statistics and no order asked for, problems first."""
    names = list(tensors)
    if sort == "name":
        names.sort()
    elif sort == "bytes":
        names.sort(key=lambda name: -tensors[name].spec.num_bytes)
    elif sort == "norm" and stats is not None:
        names.sort(key=lambda name: -(stats[name].norm or 0.0) if name in stats else 1.0)
    elif stats is not None:
        names.sort(key=lambda name: not (name in stats and stats[name].problems))
    return {name: tensors[name] for name in names}


def numbers_of(stats: Stats | None) -> dict[str, float | int | None]:
    """For programs."""
    if stats is None:
        return dict.fromkeys(NUMBERS)
    values: tuple[float | int | None, ...] = (
        stats.minimum,
        stats.maximum,
        stats.mean,
        stats.std,
        stats.norm,
        stats.zeros,
        stats.nans,
        stats.infinities,
        stats.dead_rows,
        stats.dead_columns,
        *(stats.quantiles or (None,) * 7),
    )
    return dict(zip(NUMBERS, values, strict=True))


def documents(tensors: Mapping[str, Tensor], stats: Mapping[str, Stats] | None) -> list[dict[str, Any]]:
    """Rows for programs."""
    found = []
    for name, tensor in tensors.items():
        spec = tensor.spec
        row = {"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "num_bytes": spec.num_bytes}
        if stats is not None:
            one = stats.get(name)
            row |= {**numbers_of(one), "same_as": None if one is None else one.same_as}
            row["problems"] = [] if one is None else list(one.problems)
        found.append(row)
    return found


def write_csv(tensors: Mapping[str, Tensor], stats: Mapping[str, Stats] | None) -> None:
    """Rows for a spreadsheet, with a header."""
    writer = csv.writer(sys.stdout)
    writer.writerow(["name", "dtype", "shape", "elements", "bytes", *([] if stats is None else [*NUMBERS, "problems"])])
    for name, tensor in tensors.items():
        spec = tensor.spec
        numbers: list[object] = []
        if stats is not None:
            one = stats.get(name)
            numbers = ["" if n is None else n for n in numbers_of(one).values()]
            numbers.append(_harmless("" if one is None else ", ".join(one.problems)))
        shape = "x".join(map(str, spec.shape))
        writer.writerow([_harmless(name), spec.dtype, shape, spec.num_elements, spec.num_bytes, *numbers])


def _harmless(text: str) -> str:
    """A name that a spreadsheet would take for a formula is text."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def print_rows(console: Console, tensors: Mapping[str, Tensor], stats: Mapping[str, Stats] | None) -> None:
    """A table for people; what is wrong stands in a column of its own, which is there when something is."""
    from rich.text import Text

    from safepoint.cli.output import cell, table

    problems = stats is not None and any(stats[name].problems for name in tensors if name in stats)
    longest = min(_LONG_NAME, max(map(len, tensors), default=0))
    room = console.width - longest - (_PROBLEM_WIDTH if problems else 0)
    shown = [word for word, needed in _WORDS.items() if room >= needed]
    columns = ["size"] if stats is None else shown
    titles = ["name", *(["problem"] if problems else []), *([] if stats is not None else ["type"]), "shape", *columns]
    rows = table(*titles, right=tuple(columns), fold=("name", "shape", "problem"))
    for name, tensor in tensors.items():
        spec, one = tensor.spec, None if stats is None else stats.get(name)
        shape = cell("[" + ", ".join(map(str, spec.shape)) + "]")
        if stats is None:
            cells: list[Text] = [cell(name), cell(spec.dtype, "cyan"), shape, cell(size(spec.num_bytes))]
        else:
            wrong = [cell(", ".join(one.problems) if one is not None else "", "bold red")] if problems else []
            words = _words(one)
            cells = [cell(name), *wrong, shape, *(cell(words.get(word, "")) for word in shown)]
        rows.add_row(*cells)
    console.print()
    console.print(rows)


def _words(stats: Stats | None) -> dict[str, str]:
    if stats is None or stats.quantiles is None:
        return {}
    return {
        "mean": _number(stats.mean),
        "std": _number(stats.std),
        "range": f"{stats.minimum:.3g} .. {stats.maximum:.3g}",
        "norm": _number(stats.norm),
        "5 %": f"{stats.quantiles[1]:.3g}",
        "median": f"{stats.quantiles[3]:.3g}",
        "95 %": f"{stats.quantiles[5]:.3g}",
    }


def _number(value: float | None) -> str:
    return "too large" if value is None else f"{value:.3g}"
