"""Report: what a restore did, name by name, and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

from safepoint.repository import Snapshot
from safepoint.tree import TensorSpec, notebook_table

_FIRST = 4


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What a restore did; `str` tells it in words, with the first names of each kind.

    Attributes:
        source: what was restored from.
        snapshot: which one, or None for a file that is no repository.
        matched: names that were restored.
        missing: live names that the snapshot lacks; they kept their values.
        ignored: names in the snapshot that nothing live asked for.
        reshaped: name → (live, saved) of tensors left alone because their shapes differ.
        retyped: name → (live, saved) of tensors whose dtype was converted (then in `matched` too), or that were left
            alone because it differs.
        passed_over: newer snapshots that were not whole, and why (`resume()` only).
        random: names of the random states that were restored (`resume()` only).
    """

    source: str
    snapshot: Snapshot | None
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    reshaped: Mapping[str, tuple[TensorSpec, TensorSpec]] = field(default_factory=dict)
    retyped: Mapping[str, tuple[TensorSpec, TensorSpec]] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    random: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line: how many names were restored, and from what."""
        left = len({*self.missing, *self.reshaped, *self.retyped}.difference(self.matched))
        count = f"{len(self.matched)} of {len(self.matched) + left}" if left else f"all {len(self.matched)}"
        step = "" if self.snapshot is None else f", step {self.snapshot.step}"
        return f"restored {count} names from {self.source}{step}"

    def __repr__(self) -> str:
        return f"<{self.summary}>"

    def _repr_html_(self) -> str:
        return notebook_table(self.summary, ("",), [(line.strip(),) for line in str(self).splitlines()[1:]])

    def __str__(self) -> str:
        done = set(self.matched)
        lines = [
            _line("left as they were: another shape", _pairs(self.reshaped)),
            _line(
                "left as they were: another dtype, cast=True converts",
                _pairs({name: pair for name, pair in self.retyped.items() if name not in done}),
            ),
            _line("left as they were: not in the snapshot", self.missing),
            _line("converted", _pairs({name: pair for name, pair in self.retyped.items() if name in done})),
            _line("in the snapshot only, not used", self._ignored()),
        ]
        return "\n".join([self.summary, *filter(None, lines)])

    def _ignored(self) -> list[str]:
        """Ignored names; those under a tracked name of which nothing was used as one."""
        used = {name.partition("/")[0] for name in (*self.matched, *self.missing, *self.reshaped, *self.retyped)}
        tops = Counter(name.partition("/")[0] for name in self.ignored)
        whole = [f"{top} (all of it)" for top in sorted(tops) if top not in used]
        return [*whole, *(name for name in self.ignored if name.partition("/")[0] in used)]


def _pairs(specs: Mapping[str, tuple[TensorSpec, TensorSpec]]) -> list[str]:
    return [f"{name} (here {live}, saved {saved})" for name, (live, saved) in specs.items()]


def _line(what: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return f"  {what}: {', '.join(names[:_FIRST])}{more}"
