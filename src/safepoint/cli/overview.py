"""A run at a glance: its metrics from step to step, its best snapshots, its tags, its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from safepoint.cli.sparkline import sparkline
from safepoint.cli.text import metric as number
from safepoint.cli.text import plain, size
from safepoint.repository import lineage, ranked

if TYPE_CHECKING:
    from rich.console import Console

    from safepoint.repository import Repository, Snapshot

_MOST_METRICS = 4
_MOST_TAGS = 8
_MOST_BARS = 40
_LONGEST_NAME = 20


@final
@dataclass(frozen=True, slots=True)
class Trend:
    """A metric through the lineage of the newest snapshot, pruned ones included.

    Attributes:
        metric: its name.
        values: oldest first.
        best: of the snapshots that are there still, or None.
    """

    metric: str
    values: tuple[float, ...]
    best: Snapshot | None


def trends(snapshots: Mapping[int, Snapshot]) -> list[Trend]:
    """Each metric, in the order in which they were first seen."""
    line = lineage(snapshots)
    there = [snapshot for snapshot in line if not snapshot.pruned]
    names = dict.fromkeys(name for snapshot in line for name in snapshot.metrics)
    return [
        Trend(name, tuple(s.metrics[name] for s in line if name in s.metrics), next(iter(ranked(there, name)), None))
        for name in names
    ]


def tagged(snapshots: Mapping[int, Snapshot]) -> dict[str, Snapshot]:
    """Tag → the snapshot that it names."""
    return {tag: snapshot for snapshot in snapshots.values() if not snapshot.pruned for tag in snapshot.tags}


def logical_bytes(snapshots: Mapping[int, Snapshot]) -> int:
    """Of all tensors in all snapshots, each counted as often as it is in one."""
    return sum(snapshot.num_bytes for snapshot in snapshots.values() if not snapshot.pruned)


def stored_bytes(repository: Repository) -> int:
    """Of all packs."""
    store = repository.store
    return sum(store.size(f"packs/{name}") for name in store.list("packs"))


def bytes_in_words(held: int, stored: int) -> str:
    """`254 kB on disk for 639 kB (60 % less)`: what is stored, what all snapshots hold, what deduplication saved."""
    saved = f" for {size(held)} ({100 * (held - stored) / held:.0f} % less)" if stored < held else ""
    return f"{size(stored)} on disk{saved}"


def documents(repository: Repository, snapshots: Mapping[int, Snapshot]) -> dict[str, Any]:
    """The same for programs."""
    from safepoint.cli.subject import as_json, reference_of

    best = {trend.metric: trend.best for trend in trends(snapshots) if trend.best is not None}
    return {
        "logical_bytes": logical_bytes(snapshots),
        "stored_bytes": stored_bytes(repository),
        "best": {
            metric: {
                "reference": reference_of(repository, s.number),
                "step": s.step,
                "value": as_json(s.metrics[metric]),
            }
            for metric, s in best.items()
        },
        "tags": {tag: reference_of(repository, s.number) for tag, s in tagged(snapshots).items()},
    }


def print_overview(console: Console, snapshots: Mapping[int, Snapshot]) -> None:
    """A line for each of the first metrics and one for the tags; nothing where there are none."""
    from rich.table import Table
    from rich.text import Text

    from safepoint.cli.output import cell

    found = trends(snapshots)[:_MOST_METRICS]
    told = [_in_words(trend) for trend in found]
    tags = [f"{tag} (step {snapshot.step})" for tag, snapshot in tagged(snapshots).items()]
    if not found and not tags:
        return
    names = [_short(trend.metric) for trend in found]
    label = max(map(len, (*names, "tags" if tags else "")))
    room = console.width - label - max(map(len, told), default=0) - 4  # two gaps
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for name, trend, words in zip(names, found, told, strict=True):
        bars = sparkline(trend.values, width=max(1, min(_MOST_BARS, room)), ascii_only=console.options.ascii_only)
        rows.add_row(cell(name, "dim"), Text.assemble((bars, "cyan"), f"  {words}", overflow="fold"))
    if tags:
        more = f", and {len(tags) - _MOST_TAGS} more" if len(tags) > _MOST_TAGS else ""
        rows.add_row(cell("tags", "dim"), cell(", ".join(tags[:_MOST_TAGS]) + more))
    console.print()
    console.print(rows)


def _in_words(trend: Trend) -> str:
    first, last = number(trend.values[0]), number(trend.values[-1])
    through = f"{first} → {last}" if len(trend.values) > 1 else first
    best = f", best {number(trend.best.metrics[trend.metric])} at step {trend.best.step}" if trend.best else ""
    return through + best


def _short(name: str) -> str:
    text = plain(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
