"""Where commands print: tables for people, one JSON document for programs, progress on stderr.

Invariant: text from files reaches the terminal as `cell`s only: no markup, no control characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safepoint.cli.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from safepoint.cli.table import Table
    from safepoint.repository import Progress


def stdout() -> Console:
    """For people: as wide as the terminal, 80 columns elsewhere; colours in a terminal only, and not under NO_COLOR."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """For words and progress beside the data."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def emit(document: Mapping[str, Any]) -> None:
    """The JSON document of a command; ASCII, so that no name in it can do harm in a terminal."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def emit_lines(lines: list[str]) -> None:
    """What `--quiet` leaves: one thing a line."""
    sys.stdout.write("".join(f"{plain(line)}\n" for line in lines))


def cell(text: str, style: str = "") -> Text:
    """Text as it is, harmless."""
    from rich.text import Text

    return Text(plain(text), style=style, overflow="fold")


def headline(*parts: tuple[str, str]) -> Text:
    """`(text, style)` parts with dots between them."""
    from rich.text import Text

    line = Text(overflow="fold")
    for text, style in parts:
        if text:
            line.append("  ·  " if line else "", style="dim").append_text(cell(text, style))
    return line


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = ()) -> Table:
    """A table without frame; columns in `fold` give way where the terminal is narrow, the others stay whole."""
    from safepoint.cli.table import Column, Table

    return Table([Column(cell(column), column in right, column in fold) for column in columns])


@contextmanager
def progress_bar(title: str, *, hidden: bool) -> Iterator[Progress | None]:
    """A bar on stderr that goes away when it is done; None outside a terminal or where nobody wants one."""
    console = None if hidden else stderr()
    if console is None or not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TimeRemainingColumn(compact=True)
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def facts(rows: Mapping[str, str]) -> Grid:
    """Words and what they stand for; empty ones are left out."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for word, content in rows.items():
        if content:
            grid.add_row(cell(word, "dim"), cell(content))
    return grid


def guides(levels: tuple[bool, ...], console: Console) -> str:
    """The lines of a tree before a name; `levels` says where more follows."""
    if len(levels) == 1:
        return ""
    *above, here = levels[1:]
    text = "".join("│ " if more else "  " for more in above) + ("├ " if here else "└ ")
    ascii_only = console.options.ascii_only
    return text.translate(str.maketrans("│├└", "|+`")) if ascii_only else text
