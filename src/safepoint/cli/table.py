"""Tables for people. Rich's own take a millisecond a row, and a model has a thousand.

Invariant: cells are one line of text; what does not fit a column that folds goes on in the next line, in that column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

_GAP = "  "
_ENDS = " /.,"  # a line of a cell may end behind one of them


@final
@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, to which side its cells go, and whether they fold where the terminal is narrow."""

    title: Text
    right: bool
    folds: bool


@final
class Table:
    """Rows of cells under titles; no frame."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._rows: list[tuple[tuple[Text, ...], str]] = []

    def add_row(self, *cells: Text, style: str = "") -> None:
        """One cell a column."""
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Rich's protocol: what is printed."""
        rows = [(tuple(column.title for column in self._columns), "dim"), *self._rows]
        needed = [max(_width(cells[index]) for cells, _ in rows) for index in range(len(self._columns))]
        widths = _fitted(needed, [column.folds for column in self._columns], options.max_width)
        styles: dict[str, Style] = {}
        newline = Segment.line()
        for cells, style in rows:
            folded = [self._lines(console, cell, width, styles) for cell, width in zip(cells, widths, strict=True)]
            for number in range(max(map(len, folded))):
                line: list[Segment] = []
                for column, lines, width in zip(self._columns, folded, widths, strict=True):
                    parts, used = lines[number] if number < len(lines) else ([], 0)
                    blank = Segment(" " * (width - used))
                    line += [blank, *parts] if column.right else [*parts, blank]
                    line.append(Segment(_GAP))
                yield from Segment.apply_style(line[:-1], console.get_style(style)) if style else line[:-1]
                yield newline

    def _lines(
        self, console: Console, cell: Text, width: int, styles: dict[str, Style]
    ) -> list[tuple[list[Segment], int]]:
        """The lines of a cell, each with its width."""
        if _width(cell) > width:
            wrapped = _folded(cell, width) if cell.plain.isascii() else cell.wrap(console, width, overflow="fold")
            return [(list(line.render(console)), _width(line)) for line in wrapped]
        if cell.spans:
            return [(list(cell.render(console)), _width(cell))]
        word = str(cell.style)
        if word not in styles:
            styles[word] = console.get_style(word, default="")
        return [([Segment(cell.plain, styles[word])], _width(cell))]


def _folded(cell: Text, width: int) -> list[Text]:
    """Lines that end where words or parts of a name do, if that leaves half of the width; else where it is full."""
    plain, start = cell.plain, 0
    cuts: list[int] = []
    while len(plain) - start > width:
        end = max(plain.rfind(mark, start, start + width) for mark in _ENDS) + 1
        start = end if end - start > width // 2 else start + width
        cuts.append(start)
    lines = cell.divide(cuts)
    for line in lines:
        line.rstrip()
    return list(lines)


def _width(text: Text) -> int:
    plain = text.plain
    return len(plain) if plain.isascii() else cell_len(plain)


def _fitted(needed: Sequence[int], folds: Sequence[bool], room: int) -> list[int]:
    """Widths that fit: columns that fold give way, the widest first; then, where that is not enough, the others."""
    widths = list(needed)
    room -= len(_GAP) * (len(widths) - 1)
    for giving in (folds, [True] * len(widths)):
        while sum(widths) > room:
            most = max((w for w, gives in zip(widths, giving, strict=True) if gives), default=1)
            if most <= 1:
                break
            widest = [index for index, w in enumerate(widths) if giving[index] and w == most]
            next_most = max((w for index, w in enumerate(widths) if giving[index] and w < most), default=1)
            excess = sum(widths) - room
            for position, index in enumerate(widest):
                share = excess // len(widest) + (position < excess % len(widest))
                widths[index] = max(next_most, 1, most - share)
    return widths
