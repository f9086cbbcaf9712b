"""What a run of the torture did, and the page that says so."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PACKAGES = ["safepoint", "numpy", "hypothesis", "torch", "tensorflow-cpu", "tensorflow", "keras", "jax", "safetensors"]


@dataclass
class Row:
    """One line of the table."""

    harness: str
    tried: int
    what: str
    seconds: float
    controls: str


@dataclass
class Report:
    """All that one run did."""

    seed: int
    scale: float
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    cut_short: bool = False


@dataclass
class Torture:
    """One harness's budget, dice and line in the report.

    Attributes:
        rng: its own, from the run's seed and the harness's name.
        replay: the command that runs the same again.
    """

    report: Report
    rng: random.Random
    replay: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def budget(self, short: int, full: int) -> int:
        """How often: `short` within `make test` (scale 0), `full` in `make torture` (scale 1), in between, or more."""
        return max(short, round(full * self.report.scale))

    @property
    def is_short(self) -> bool:
        return self.report.scale == 0

    def record(self, harness: str, tried: int, what: str, *, controls: str = "") -> None:
        """A line in the report: nothing of it failed, or the test would have."""
        self.rows.append(Row(harness, tried, what, 0.0, controls))

    def note(self, text: str) -> None:
        """A line below the table."""
        self.notes.append(text)


def write_report(report: Report, folder: Path) -> None:
    """The run as a page in `folder`, called by its time."""
    now = datetime.now(UTC)
    lines = [
        f"# Torture, {now:%Y-%m-%d %H:%M} UTC",
        "",
        f"`make torture`, seed {report.seed}, scale {report.scale:g}: "
        + ("**failures, see below**." if report.failed else "no violation.")
        + (" Interrupted: only what stands here ran." if report.cut_short else ""),
        "",
        f"- commit {_commit()}",
        f"- Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores",
        f"- {', '.join(_versions())}",
        "",
        "| Harness | Tried | What | Caught: a broken protocol | Seconds |",
        "|---|---:|---|---|---:|",
    ]
    lines += [f"| {r.harness} | {r.tried:,} | {r.what} | {r.controls or '—'} | {r.seconds:,.0f} |" for r in report.rows]
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{now:%Y-%m-%d-%H%M}{'-failed' if report.failed else ''}.md"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
