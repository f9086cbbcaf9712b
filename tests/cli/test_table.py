"""Tables: every cell whole, folded in its own column, in the width that there is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from safepoint.cli.output import cell, table


def printed(rows: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(rows)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_columns_stand_under_each_other_and_numbers_to_the_right() -> None:
    rows = table("name", "size", right=("size",))
    rows.add_row(cell("weight"), cell("12"))
    rows.add_row(cell("b"), cell("1,000"))
    assert printed(rows, 80) == ["name     size", "weight     12", "b       1,000"]


@pytest.mark.parametrize("width", [17, 20, 30, 70])
def test_what_is_too_wide_folds_in_its_own_column(width: int) -> None:
    rows = table("name", "kind", "note", fold=("name", "note"))
    rows.add_row(cell("abcdefghijklmnopqrstuvwxyz"), cell("f32"), cell("no word is longer than this"))
    lines = printed(rows, width)
    assert max(map(len, lines)) <= width
    assert "".join("".join(lines[1:]).split()).count("f32") == 1
    letters = "".join(line[: lines[0].index("kind")].strip() for line in lines[1:])
    assert letters == "abcdefghijklmnopqrstuvwxyz"


def test_wide_characters_and_parts_of_a_cell_count_as_they_show() -> None:
    rows = table("a", "b")
    rows.add_row(Text.assemble(("├ ", "dim"), "日本"), cell("x"))
    rows.add_row(cell("abcdef"), cell("y"))
    assert printed(rows, 80) == ["a       b", "├ 日本  x", "abcdef  y"]


def test_no_rows_are_only_titles() -> None:
    assert printed(table("a", "b"), 80) == ["a  b"]


def test_lines_end_where_parts_of_names_do() -> None:
    rows = table("name", "how", fold=("name",))
    rows.add_row(cell("optim/state/1/exp_avg_sq"), cell("all of it"))
    rows.add_row(cell("x" * 24), cell(""))
    name = [line[:17].strip() for line in printed(rows, 28)]
    assert name == ["name", "optim/state/1/", "exp_avg_sq", "x" * 17, "x" * 7]
