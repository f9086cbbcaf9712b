"""What can be wrong with a run, told from its course: pure functions over one table.

Invariant: nothing is found in a run that trains as it should. Each rule says what healthy runs do that looks like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safepoint.api.course import Course

Kind: TypeAlias = Literal["not finite", "exploding", "dead units", "standing still", "moments at zero", "duplicates"]

_GROWTH = 10.0  # from one snapshot to the next
_LONG_GROWTH = 100.0  # since the first
_LARGE_RMS = 1.0  # elements of trained matrices are smaller
_HUGE_RMS = 10.0
_FEW = 0.25  # of the others must move, so that one that does not is told from the end of a schedule
_LONG = 2  # intervals
_COPIES = frozenset({"target", "ema", "teacher", "online", "student", "average", "averaged", "shadow", "old", "swa"})


@final
@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that is wrong.

    Attributes:
        kind: of it.
        at: place in the course of the first snapshot that shows it.
        names: of tensors and metrics, the plainest cases first.
        evidence: name → numbers in words.
    """

    kind: Kind
    at: int
    evidence: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, or metrics, that show it."""
        return tuple(self.evidence)


def symptoms(course: Course) -> list[Symptom]:
    """Everything that is wrong, in the order of steps; one of a kind, the first.

    What comes after numbers ceased to be finite is not looked at: it follows from that.
    """
    rows = _Rows(course)
    broken = not_finite(rows)
    if broken is not None and broken.at == 0:
        return [broken]
    if broken is not None:
        rows = _Rows(course, broken.at)
    found = [broken, exploding(rows), dead_units(rows), moments_at_zero(rows), standing_still(rows), duplicates(rows)]
    return sorted((symptom for symptom in found if symptom is not None), key=lambda symptom: symptom.at)


class _Rows:
    """The first snapshots of a course, by columns: weights, matrices, moments."""

    def __init__(self, course: Course, count: int | None = None) -> None:
        self.course = course
        self.table = course.table[:count]
        self.names = course.names
        self.there = self.table["there"]
        column = {name: index for index, name in enumerate(self.names)}
        self.weights = [column[name] for name in course.roles.weights if name in column]
        self.matrices = [index for index in self.weights if len(course.specs[self.names[index]].shape) >= 2]
        self.moments = [
            (column[name], column[weight], slot)
            for name, (weight, slot) in course.roles.moments.items()
            if name in column and weight in column
        ]
        self.trained = sorted({weight for _, weight, _ in self.moments})

    @cached_property
    def changed(self) -> NDArray[np.bool_]:
        """Whether a tensor has other bytes than in the snapshot before; the first row is all False."""
        changed = np.zeros(self.there.shape, bool)
        both = self.there[1:] & self.there[:-1]
        changed[1:] = both & (self.table["identity"][1:] != self.table["identity"][:-1])
        return changed

    @cached_property
    def zero(self) -> NDArray[np.bool_]:
        """Whether a tensor has elements, all of which are zero."""
        zero: NDArray[np.bool_] = self.there & (self.table["zeros"] == self.elements) & (self.elements > 0)
        return zero

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Of each tensor."""
        return np.array([spec.num_elements for spec in self.course.specs.values()], np.int64)

    def step(self, place: int) -> int:
        """Of a snapshot."""
        return self.course.snapshots[place].step


def not_finite(rows: _Rows) -> Symptom | None:
    """NaN or infinity in a tensor, or a metric that was a number and ends as NaN.

    Infinity beside nothing but one number is a mask, and a metric that is NaN now and then was not measured then.
    """
    table = rows.table
    mask = (table["nans"] == 0) & ~(table["minimum"] < table["maximum"])
    bad = rows.there & ((table["nans"] > 0) | ((table["infinities"] > 0) & ~mask))
    metrics = dict(_metrics_that_end(rows.course))
    first = min([*np.flatnonzero(bad.any(axis=1)).tolist()[:1], *metrics.values()], default=None)
    if first is None:
        return None
    amount = table["nans"][first] + table["infinities"][first]
    evidence = {name: "NaN from here on" for name, place in metrics.items() if place == first}
    for column in sorted(np.flatnonzero(bad[first]), key=lambda column: -int(amount[column])):
        counts = (("NaN", table["nans"][first, column]), ("infinite", table["infinities"][first, column]))
        words = " and ".join(f"{number:,} {word}" for word, number in counts if number)
        evidence[rows.names[column]] = f"{words} of {rows.elements[column]:,}"
    return Symptom("not finite", first, evidence)


def exploding(rows: _Rows) -> Symptom | None:
    """Elements of a matrix that become ten times as large from one snapshot to the next, or a hundred times in all.

    Not where they stay small: what begins near zero grows by any factor. Vectors may: biases find their level.
    """
    rms = rows.table["norm"] / np.sqrt(np.maximum(rows.elements, 1))
    for place in range(1, len(rms)):
        evidence = {}
        for column in rows.matrices:
            past = rms[:place, column][rows.there[:place, column]]
            now = rms[place, column]
            if not rows.there[place, column] or not len(past) or not past.max() > 0:
                continue
            jumped = now >= _GROWTH * past.max() and now >= _LARGE_RMS
            if jumped or (now >= _LONG_GROWTH * past[past > 0][0] and now >= _HUGE_RMS and now > past[-1]):
                before = rows.table["norm"][place - 1, column]
                evidence[rows.names[column]] = f"norm {before:.3g} → {rows.table['norm'][place, column]:.3g}"
        if evidence:
            return Symptom("exploding", place, evidence)
    return None


def dead_units(rows: _Rows) -> Symptom | None:
    """Rows or columns of a matrix that had numbers, become all zero, and stay so to the end.

    Those that are zero from the start are none: padding, pruned inputs, adapters that begin at zero.
    """
    found: dict[int, dict[str, str]] = {}
    for column in rows.matrices:
        shape = rows.course.specs[rows.names[column]].shape
        for field, size in (("dead_rows", shape[0]), ("dead_columns", shape[-1])):
            dead = np.where(rows.there[:, column], rows.table[field][:, column], 0)
            if not rows.there[:, column].all() or len(dead) < 2:
                continue
            lowest = np.minimum.accumulate(dead)
            lasting = np.minimum.accumulate(dead[::-1])[::-1]  # the fewest from here to the end
            places = np.flatnonzero(lasting[1:] > lowest[:-1]) + 1
            if len(places):
                place = int(places[0])
                words = f"{lasting[place]} of {size} {field.removeprefix('dead_')} all zero, {lowest[place - 1]} before"
                found.setdefault(place, {})[rows.names[column]] = words
    first = min(found, default=None)
    return None if first is None else Symptom("dead units", first, found[first])


def moments_at_zero(rows: _Rows) -> Symptom | None:
    """Moments that stay zero where those of other weights do not, become zero all at once, or never were anything else.

    Before the first step all are zero.
    """
    columns = [column for column, _, _ in rows.moments]
    if not columns or len(rows.table) < 2:
        return None
    lost = _lost(rows, columns)
    if lost is not None:
        return lost
    moving = rows.changed[:, rows.trained].mean(axis=1) >= _FEW
    if rows.zero[:, columns].all() and moving.sum() >= _LONG:
        first = int(np.flatnonzero(moving)[0])
        words = "zero in every snapshot, though the weight moved"
        return Symptom("moments at zero", first, {rows.names[column]: words for column in columns})
    found: dict[int, dict[str, str]] = {}
    for slot in dict.fromkeys(slot for _, _, slot in rows.moments):
        same = [column for column, _, other in rows.moments if other == slot]
        alive = (rows.there & ~rows.zero)[:, same].mean(axis=1) >= _FEW
        for column in same:
            since = _since(rows.zero[:, column])
            places = [place for place in range(since, len(rows.table)) if alive[place]]
            if len(places) >= _LONG:
                words = f"zero since step {rows.step(places[0])}, those of other weights are not"
                found.setdefault(places[0], {})[rows.names[column]] = words
    first_place = min(found, default=None)
    return None if first_place is None else Symptom("moments at zero", first_place, found[first_place])


def standing_still(rows: _Rows) -> Symptom | None:
    """A weight that the optimizer holds moments of, and whose bytes stay the same while others move, to the end.

    Weights without moments are frozen on purpose, if others have some. Without any optimizer state to tell, only a
    weight that moved before. Where moments are zero, no gradient comes: that is said of the moments.
    """
    still = [column for column in rows.trained if not _without_gradient(rows, column)]
    judges = rows.trained
    if not rows.moments:
        still = judges = [column for column in rows.weights if rows.changed[:, column].any()]
    if not judges:
        return None
    moving = rows.changed[:, judges].mean(axis=1) >= _FEW
    found: dict[int, dict[str, str]] = {}
    for column in still:
        if not rows.there[:, column].all():
            continue
        since = _since(~rows.changed[:, column])
        places = [place for place in range(max(since, 1), len(rows.table)) if moving[place]]
        if len(places) >= _LONG:
            others = int(rows.changed[places[0], judges].sum())
            words = f"the same bytes since step {rows.step(places[0] - 1)}, while {others} others moved"
            found.setdefault(places[0], {})[rows.names[column]] = words
    first = min(found, default=None)
    return None if first is None else Symptom("standing still", first, found[first])


def duplicates(rows: _Rows) -> Symptom | None:
    """Two matrices of one object that were different and became the same.

    Those that always were are tied, or began as copies; a target network is one now and again.
    """
    identity = rows.table["identity"]
    for place in range(1, len(rows.table)):
        evidence = {}
        for first, second in _equal(rows, place):
            apart = identity[:place, first] != identity[:place, second]
            apart &= rows.there[:place, first] & rows.there[:place, second]
            if apart.any() and _are_layers_of_one(rows.names[first], rows.names[second]):
                evidence[rows.names[second]] = f"the same bytes as {rows.names[first]}, others before"
        if evidence:
            return Symptom("duplicates", place, evidence)
    return None


def always_equal(course: Course) -> list[tuple[str, str]]:
    """Pairs of matrices with the same bytes in every snapshot."""
    rows = _Rows(course)
    identity = rows.table["identity"]
    pairs = [(a, b) for a, b in _equal(rows, len(rows.table) - 1) if (identity[:, a] == identity[:, b]).all()]
    return [(rows.names[a], rows.names[b]) for a, b in pairs]


def never_moved(course: Course) -> list[str]:
    """Weights without moments that have the same bytes in every snapshot, where others have moments or move."""
    rows = _Rows(course)
    if len(rows.table) < 2 or not rows.changed[:, rows.weights].any():
        return []
    still = [column for column in rows.weights if column not in rows.trained and not rows.changed[:, column].any()]
    return [rows.names[column] for column in still]


def _metrics_that_end(course: Course) -> Iterator[tuple[str, int]]:
    """(metric, place from which on it is NaN), of metrics that were numbers before."""
    for name in dict.fromkeys(name for snapshot in course.snapshots for name in snapshot.metrics):
        values = [(place, s.metrics[name]) for place, s in enumerate(course.snapshots) if name in s.metrics]
        since = _since(np.array([value != value for _, value in values]))  # noqa: PLR0124 — NaN
        if 0 < since < len(values):
            yield name, values[since][0]


def _lost(rows: _Rows, columns: Sequence[int]) -> Symptom | None:
    """Where all moments became zero at once: an optimizer that began anew."""
    alive = (rows.there & ~rows.zero)[:, columns].sum(axis=1)
    there = rows.there[:, columns].sum(axis=1)
    for place in range(1, len(rows.table)):
        if there[place] > 1 and alive[place] == 0 and 2 * alive[place - 1] > there[place - 1]:
            words = f"zero, and was not at step {rows.step(place - 1)}"
            names = [rows.names[c] for c in columns if rows.there[place - 1, c] and not rows.zero[place - 1, c]]
            return Symptom("moments at zero", place, dict.fromkeys(names, words))
    return None


def _without_gradient(rows: _Rows, weight: int) -> bool:
    return any(rows.zero[-1, column] for column, owner, _ in rows.moments if owner == weight)


def _since(flags: NDArray[np.bool_]) -> int:
    """The place from which on all are True; their number if the last is not."""
    places = np.flatnonzero(~flags)
    return int(places[-1]) + 1 if len(places) else 0


def _equal(rows: _Rows, place: int) -> Iterator[tuple[int, int]]:
    """Pairs of matrices with the same bytes in a snapshot, that are not one number throughout."""
    first: dict[int, int] = {}
    for column in rows.matrices:
        cell: Any = rows.table[place, column]
        if cell["there"] and cell["minimum"] < cell["maximum"]:
            twin = first.setdefault(int(cell["identity"]), column)
            if twin != column:
                yield twin, column


def _are_layers_of_one(first: str, second: str) -> bool:
    """Whether two names are of one tracked object, and neither says that it is a copy."""
    words = [set(name.replace("/", ".").replace("_", ".").lower().split(".")) for name in (first, second)]
    return first.partition("/")[0] == second.partition("/")[0] and not (words[0] ^ words[1]) & _COPIES
