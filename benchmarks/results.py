"""The table that `make bench` prints and keeps: every row with its goal beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from safepoint.cli.machine import described


@dataclass
class Row:
    """One figure.

    Attributes:
        name: of the figure.
        measured: seconds, or whatever `unit` says; the median is shown.
        base: what it is compared with; the median, if any.
        goal: the largest ratio to `base`, or the largest value where there is no base; None: for comparison only.
        unit: of the values.
        note: what the base is.
        num_bytes: that were written or read, for the speed.
        added_bytes: the most memory that it held beside the state, where that was measured.
    """

    name: str
    measured: list[float]
    base: list[float] | None = None
    goal: float | None = None
    unit: str = "s"
    note: str = ""
    num_bytes: int = 0
    added_bytes: int | None = None

    def titled(self, prefix: str) -> Row:
        """The same under a longer name."""
        return replace(self, name=prefix + self.name)

    @property
    def value(self) -> float:
        """The median, as a ratio to the base's where there is one."""
        middle = median(self.measured)
        return middle / median(self.base) if self.base else middle

    @property
    def reached(self) -> str:
        """Whether the goal is reached, in a word."""
        if self.goal is None:
            return ""
        return "yes" if self.value <= self.goal else "**no**"

    def cells(self) -> list[str]:
        """As cells of the table."""
        middle = median(self.measured)
        spread = f"{min(self.measured):.3g}-{max(self.measured):.3g}" if len(self.measured) > 1 else ""
        base = f"{median(self.base):.3g} {self.unit} {self.note}".strip() if self.base else self.note
        ratio = f"{self.value:.2f}" if self.base else ""
        goal = "" if self.goal is None else f"≤ {self.goal:g}{' x' if self.base else f' {self.unit}'}"
        speed = f"{self.num_bytes / middle / 1e9:.2f}" if self.num_bytes and self.unit == "s" and middle else ""
        added = "" if self.added_bytes is None else f"{self.added_bytes / 1e6:,.0f} MB"
        return [self.name, f"{middle:.3g} {self.unit}", spread, speed, added, base, ratio, goal, self.reached]


_HEADS = ["figure", "median", "range", "GB/s", "memory", "compared with", "ratio", "goal", "reached"]


def markdown(rows: list[Row], rounds: int) -> str:
    """The whole page."""
    lines = [
        f"# {datetime.now(UTC):%Y-%m-%d}, {described()}",
        "",
        f"`make bench`, {rounds} interleaved rounds, medians. Ratios hold; seconds drift on a shared machine.",
        "",
        "| " + " | ".join(_HEADS) + " |",
        "|" + "---|" * len(_HEADS),
    ]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    missed = [row.name for row in rows if row.reached == "**no**"]
    lines += ["", f"Missed: {', '.join(missed)}." if missed else "Every goal was reached.", ""]
    return "\n".join(lines)


def keep(text: str, folder: Path) -> Path:
    """Write the page beside the others, under today's date."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y-%m-%d-%H%M}.md"
    path.write_text(text)
    return path
