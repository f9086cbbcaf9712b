"""The course of a run: the statistics of its tensors from snapshot to snapshot, as one table.

Invariant: equal bytes are measured once; what was measured is kept in the repository's `derived/` and not read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.api.distance import moved_by
from safepoint.api.roles import Roles, roles_of
from safepoint.api.stats import QUANTILES, Stats, measure
from safepoint.codec import digest
from safepoint.errors import NotFoundError
from safepoint.repository import Manifest, Progress, Repository, Snapshot, Workers, lineage
from safepoint.tree import TensorSpec

_MOST_CELLS = 500_000  # of the table, which takes 100 bytes a cell, and twice that while it is made
_THREADS = 2
_ROW = np.dtype(
    [
        ("there", "?"), ("identity", "<i4"), ("zeros", "<i8"), ("nans", "<i8"), ("infinities", "<i8"),
        ("minimum", "<f8"), ("maximum", "<f8"), ("norm", "<f8"), ("dead_rows", "<i4"), ("dead_columns", "<i4"),
        ("moved", "<f4"), ("quantiles", "<f4", (len(QUANTILES),)),
    ]
)  # fmt: skip

Choice = Callable[[Roles], Iterable[str]]
"""Which tensors to measure, of all that a snapshot has."""


@final
@dataclass(frozen=True, slots=True)
class Course:
    """Numbers of chosen tensors in chosen snapshots.

    Attributes:
        snapshots: of the newest lineage, oldest first; those that were pruned are not among them.
        passed_over: snapshots that are there and were not looked at.
        specs: name → shape and dtype, of the first snapshot that has it.
        roles: of all tensors of all snapshots.
        table: a row a snapshot, a column a name; `there` is False where a snapshot has no such tensor. `identity` is
            the same number for the same bytes, `norm` infinite where it is too large, `moved` the norm of the
            difference from the snapshot before by that snapshot's own (NaN where it has none), `quantiles` those of
            `safepoint.api.stats.QUANTILES`; of tensors without finite elements NaN.
    """

    snapshots: tuple[Snapshot, ...]
    passed_over: int
    specs: Mapping[str, TensorSpec]
    roles: Roles
    table: NDArray[Any]

    @property
    def steps(self) -> list[int]:
        """Of the snapshots."""
        return [snapshot.step for snapshot in self.snapshots]

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self.specs)


def follow(
    repository: Repository,
    choose: Choice,
    *,
    at_most: int | None = None,
    moves: bool = False,
    progress: Progress | None = None,
) -> Course:
    """Measure the tensors that `choose` names, in each snapshot of the newest lineage.

    Memory is that of the table and a few blocks. Snapshots are passed over, evenly, where there are more than
    `at_most`, or so many that the table would be too large; the first and the last are looked at always.

    Args:
        repository: of the run.
        choose: which tensors.
        at_most: snapshots to look at.
        moves: whether to measure how far each tensor moved, which reads blocks that changed a second time.
        progress: called with (bytes done, bytes in all).

    Raises:
        NotFoundError: no snapshot is there.
        CorruptionError: a manifest or a block is damaged.
    """
    with repository.reading():
        there = [snapshot for snapshot in lineage(repository.history()[0]) if not snapshot.pruned]
        if not there:
            raise NotFoundError(f"{repository.location} has no snapshot", hint="save one first")
        last = repository.manifest(there[-1])
        columns = max(1, len(last.tree.tensors))
        chosen = _evenly(there, min(at_most or len(there), max(2, _MOST_CELLS // columns)))
        rows = _Rows(choose)
        total, done = sum(snapshot.num_bytes for snapshot in chosen), 0
        before: Manifest | None = None
        for snapshot in chosen:
            manifest = repository.manifest(snapshot)
            rows.add(manifest, before if moves else None)
            before = manifest
            done += snapshot.num_bytes
            if progress is not None:
                progress(done, total)
    return rows.course(chosen, len(there) - len(chosen))


def _evenly(snapshots: Sequence[Snapshot], count: int) -> list[Snapshot]:
    if len(snapshots) <= count:
        return list(snapshots)
    places = np.unique(np.linspace(0, len(snapshots) - 1, max(1, count)).round().astype(int))
    return [snapshots[place] for place in places[-count:]]


class _Rows:
    """The table as it grows: a snapshot may have names that those before had not."""

    def __init__(self, choose: Choice) -> None:
        self._choose = choose
        self._specs: dict[str, TensorSpec] = {}
        self._all: dict[str, TensorSpec] = {}
        self._identities: dict[str, int] = {}
        self._measured: dict[int, tuple[Any, ...]] = {}  # by identity: of the snapshot before only
        self._rows: list[tuple[tuple[str, ...], NDArray[Any]]] = []

    def add(self, manifest: Manifest, before: Manifest | None) -> None:
        specs = {name: tensor.spec for name, tensor in manifest.tree.tensors.items()}
        self._all = {**specs, **self._all}
        wanted = set(self._choose(roles_of(specs)))
        chosen = [name for name in specs if name in wanted]
        identity = {name: self._identity(manifest, name) for name in chosen}
        new = {identity[name]: name for name in reversed(chosen) if identity[name] not in self._measured}
        stats = measure({name: manifest.tree.tensors[name] for name in new.values()}, source=manifest)
        known = {i: self._measured[i] for i in identity.values() if i in self._measured}
        self._measured = known | {i: _cell(i, stats[name]) for i, name in new.items() if name in stats}
        names = tuple(name for name, i in identity.items() if i in self._measured)
        cells = np.array([self._measured[identity[name]] for name in names], _ROW)
        if before is not None:
            self._move(names, cells, before, manifest)
        for name in names:
            self._specs.setdefault(name, specs[name])
        self._rows.append((self._rows[-1][0] if self._rows and self._rows[-1][0] == names else names, cells))

    def course(self, snapshots: Sequence[Snapshot], passed_over: int) -> Course:
        columns = {name: column for column, name in enumerate(self._specs)}
        table = np.zeros((len(snapshots), len(columns)), _ROW)
        table["moved"] = np.nan
        for index, (names, cells) in enumerate(self._rows):
            table[index, [columns[name] for name in names]] = cells
        return Course(tuple(snapshots), passed_over, self._specs, roles_of(self._all), table)

    def _identity(self, manifest: Manifest, name: str) -> int:
        stored = manifest.stored[name]
        content = "\0".join((str(stored.spec), *(block.digest for block in stored.blocks)))
        return self._identities.setdefault(digest(content.encode()), len(self._identities))

    def _move(self, names: Sequence[str], cells: NDArray[Any], before: Manifest, now: Manifest) -> None:
        old = dict(zip(*self._rows[-1], strict=True))
        both = [i for i, n in enumerate(names) if n in old and before.stored[n].spec == now.stored[n].spec]
        changed = [names[i] for i in both if cells[i]["identity"] != old[names[i]]["identity"]]
        with Workers(_THREADS, "safepoint-course") as pool:
            distances = moved_by(pool, before, now, changed)
        for i in both:
            norm, distance = float(old[names[i]]["norm"]), distances.get(names[i], 0.0)
            cells[i]["moved"] = distance / norm if norm > 0 and math.isfinite(norm) else np.nan


def _cell(identity: int, stats: Stats) -> tuple[Any, ...]:
    """A cell of the table: what `Stats` leaves out is NaN, and a norm that it cannot say infinite."""
    nothing = stats.minimum is None or stats.maximum is None
    bounds = (math.nan, math.nan) if nothing else (stats.minimum, stats.maximum)
    norm = stats.norm if stats.norm is not None else (math.nan if nothing and stats.elements else math.inf)
    quantiles = (math.nan,) * len(QUANTILES) if stats.quantiles is None else stats.quantiles
    counts = (stats.zeros, stats.nans, stats.infinities)
    return (True, identity, *counts, *bounds, norm, stats.dead_rows, stats.dead_columns, math.nan, quantiles)
