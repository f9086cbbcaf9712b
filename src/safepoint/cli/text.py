"""Sizes, times and numbers as people read them; text from files made harmless."""

from __future__ import annotations

from datetime import UTC, datetime

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def plain(text: str, *, lines: bool = False) -> str:
    """`text` without what could move a cursor, ring a bell or turn the writing round: files are strangers'."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else _REPLACEMENT for c in text)


def size(num_bytes: int) -> str:
    """`1.2 MB`: decimal, two significant digits or more."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5 or unit == "PB":
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def count(number: int, noun: str) -> str:
    """`1 snapshot`, `1,000 snapshots`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def moment(time: datetime, now: datetime) -> str:
    """A local time: with seconds if it is of this year, else with the year."""
    local = time.astimezone()
    return local.strftime("%b %d %H:%M:%S" if local.year == now.astimezone().year else "%Y-%m-%d")


def ago(time: datetime, now: datetime) -> str:
    """`3 minutes ago`."""
    seconds = max(0, round((now - time).total_seconds()))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{count(seconds // length, unit)} ago"
    return "just now" if seconds < 2 else f"{seconds} seconds ago"


def metric(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def now() -> datetime:
    """Aware UTC; the one place where the command line reads the clock."""
    return datetime.now(UTC)
