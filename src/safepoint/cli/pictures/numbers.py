"""The numbers of each kind of picture, as plain data: what is drawn, and what `--json` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from safepoint.api.compare import compare
from safepoint.api.course import Course, follow
from safepoint.api.numbers import EXACT_ELEMENTS
from safepoint.api.open import Tensors
from safepoint.api.roles import roles_of
from safepoint.api.stats import QUANTILES
from safepoint.errors import NotFoundError
from safepoint.repository import Progress, Repository, direction, lineage, ranked
from safepoint.tree import TensorSpec, select

Number: TypeAlias = "float | None"

_MOST_METRICS = 6
_MOST_PANELS = 12
_MOST_ROWS = 40
_MOST_TILES = 60


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One metric over the steps of a run, pruned snapshots included.

    Attributes:
        name: of the metric.
        better: "min" or "max".
        steps: oldest first.
        values: at these; None: not finite.
        kept: whether the snapshot is still there.
        best: place of the best one of those that are.
    """

    name: str
    better: str
    steps: list[int]
    values: list[Number]
    kept: list[bool]
    best: int | None


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics over steps. `tags`: name → step. `left_out`: names of those that are not drawn."""

    metrics: list[Metric]
    tags: dict[str, int]
    left_out: list[str]


@final
@dataclass(frozen=True, slots=True)
class Weights:
    """Quantiles of tensors over steps.

    Attributes:
        steps: of the snapshots that were looked at.
        quantiles: which.
        tensors: name → for each step the minimum, the quantiles, the maximum; None where there are none.
        sampled: names of the tensors whose quantiles are those of a sample.
        left_out: how many tensors are not drawn.
        passed_over: snapshots that were not looked at.
    """

    steps: list[int]
    quantiles: list[float]
    tensors: dict[str, list[list[Number]]]
    sampled: list[str]
    left_out: int
    passed_over: int


@final
@dataclass(frozen=True, slots=True)
class Updates:
    """How far layers moved from one snapshot to the next: norm of the difference by the norm before.

    Attributes:
        steps: of the snapshots that were looked at; the first has nothing before it and no column.
        layers: name → for each step but the first; None: not there before, or of norm zero.
        passed_over: snapshots that were not looked at.
    """

    steps: list[int]
    layers: dict[str, list[Number]]
    passed_over: int


@final
@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes by layer, the largest first. `others`: how many small ones the last one stands for."""

    layers: dict[str, int]
    others: int


@final
@dataclass(frozen=True, slots=True)
class Changes:
    """What differs in the second of two states.

    Attributes:
        tensors: name → relative change, in the order of the second; those that moved most.
        left_out: tensors that moved less.
        equal: tensors with the same elements.
        added: names that only the second has.
        removed: names that only the first has.
        reshaped: names of another shape.
    """

    tensors: dict[str, Number]
    left_out: int
    equal: int
    added: list[str]
    removed: list[str]
    reshaped: list[str]


Numbers: TypeAlias = Metrics | Weights | Updates | Sizes | Changes


def metrics_of(repository: Repository) -> Metrics:
    """Metrics of the newest lineage; of many the first.

    Raises:
        NotFoundError: no snapshot has one.
    """
    line = lineage(repository.history()[0])
    names = list(dict.fromkeys(name for snapshot in line for name in snapshot.metrics))
    if not names:
        raise NotFoundError(
            f"no snapshot of {repository.location} has a metric", hint="save(metrics={...}), or --kind weights"
        )
    found = []
    for name in names[:_MOST_METRICS]:
        having = [snapshot for snapshot in line if name in snapshot.metrics]
        best = next(iter(ranked([s for s in having if not s.pruned and math.isfinite(s.metrics[name])], name)), None)
        found.append(
            Metric(
                name,
                direction(name),
                [s.step for s in having],
                [_finite(s.metrics[name]) for s in having],
                [not s.pruned for s in having],
                None if best is None else having.index(best),
            )
        )
    tags = {tag: snapshot.step for snapshot in line if not snapshot.pruned for tag in snapshot.tags}
    return Metrics(found, tags, names[_MOST_METRICS:])


def weights_of(
    repository: Repository, patterns: Sequence[str], *, at_most: int, progress: Progress | None = None
) -> Weights:
    """Quantiles of the largest tensors that `patterns` name, or of the largest weights.

    Raises:
        MismatchError: a pattern names no tensor.
        CorruptionError: something cannot be read as it was written.
    """
    specs = _newest_specs(repository)
    named = _named(specs, patterns)
    chosen = set(sorted(named, key=lambda name: -specs[name].num_elements)[:_MOST_PANELS])
    course = follow(repository, lambda _: chosen, at_most=at_most, progress=progress)
    tensors: dict[str, list[list[Number]]] = {}
    for column, name in enumerate(course.names):
        tensors[name] = [
            [_finite(v) if cell["there"] else None for v in (cell["minimum"], *cell["quantiles"], cell["maximum"])]
            for cell in course.table[:, column]
        ]
    sampled = [name for name in tensors if course.specs[name].num_elements > EXACT_ELEMENTS]
    ordered = {name: tensors[name] for name in named if name in tensors}
    return Weights(course.steps, list(QUANTILES), ordered, sampled, len(named) - len(chosen), course.passed_over)


def updates_of(
    repository: Repository, patterns: Sequence[str], *, at_most: int, progress: Progress | None = None
) -> Updates:
    """How far layers moved between snapshots; where there are many, parts of the model that hold several.

    Raises:
        MismatchError: a pattern names no tensor.
        NotFoundError: there is but one snapshot.
        CorruptionError: something cannot be read as it was written.
    """
    specs = _newest_specs(repository)
    chosen = set(_named(specs, patterns))
    course = follow(repository, lambda _: chosen, at_most=at_most, moves=True, progress=progress)
    if len(course.snapshots) < 2:
        raise NotFoundError(
            f"{repository.location} has one snapshot", expected="two or more", hint="--kind sizes, or save more often"
        )
    layers = grouped(course.names, _MOST_ROWS)
    return Updates(course.steps, {layer: _moved(course, names) for layer, names in layers.items()}, course.passed_over)


def sizes_of(tensors: Tensors, patterns: Sequence[str]) -> Sizes:
    """Bytes of each layer, the small ones as one.

    Raises:
        MismatchError: a pattern names no tensor.
    """
    names = _select(tensors.specs, patterns)
    layers = {
        layer: sum(tensors.specs[name].num_bytes for name in members)
        for layer, members in grouped(names, len(names)).items()
    }
    ordered = dict(sorted(layers.items(), key=lambda item: -item[1]))
    small = list(ordered)[_MOST_TILES:]
    rest = sum(ordered.pop(layer) for layer in small)
    return Sizes(ordered | ({"others": rest} if small else {}), len(small))


def changes_of(first: Tensors, second: Tensors, patterns: Sequence[str], rules: Mapping[str, str] | None) -> Changes:
    """How far each weight moved from the first to the second, or each tensor that `patterns` name.

    Raises:
        MismatchError: a pattern names no tensor; a rule of `--rename` matches nothing, or makes two names one.
        CorruptionError: one of them cannot be read as it was written.
    """
    found = compare(first, second, rules=rules)
    wanted = set(_named(second.specs, patterns))
    moved = [item for item in found.moved if item.name in wanted]
    most = {item.name: _finite(item.relative) for item in moved[:_MOST_ROWS]}
    return Changes(
        {name: most[name] for name in second if name in most},
        len(moved) - len(most),
        len(wanted - {*found.added, *found.reshaped, *found.opaque, *(item.name for item in moved)}),
        [name for name in found.added if name in wanted],
        list(found.removed),
        [name for name in found.reshaped if name in wanted],
    )


def grouped(names: Sequence[str], at_most: int) -> dict[str, list[str]]:
    """Names by the layer that they are of, or by parts of the model that hold several: at most so many, if possible."""
    words = {name: name.replace("/", ".").split(".") for name in names}
    deepest = max((len(parts) for parts in words.values()), default=1)
    found: dict[str, list[str]] = {}
    for depth in range(deepest - 1, 0, -1):
        found = {}
        for name in names:
            length = min(depth, max(1, len(words[name]) - 1))
            cut = len(".".join(words[name][:length]))
            found.setdefault(name[:cut], []).append(name)
        if len(found) <= at_most:
            return found
    return found or {name: [name] for name in names}


def _moved(course: Course, names: Iterable[str]) -> list[Number]:
    """Of several tensors as one vector."""
    columns = [course.names.index(name) for name in names]
    before, now = course.table[:-1, columns], course.table[1:, columns]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        known = np.isfinite(now["moved"]) & np.isfinite(before["norm"]) & now["there"] & before["there"]
        norms = np.where(known, before["norm"], 0.0) ** 2
        ratio = np.sqrt((norms * np.where(known, now["moved"], 0.0) ** 2).sum(axis=1) / norms.sum(axis=1))
    return [_finite(value) for value in ratio]


def _newest_specs(repository: Repository) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in repository.manifest(repository.resolve()).tree.tensors.items()}


def _named(specs: Mapping[str, TensorSpec], patterns: Sequence[str]) -> list[str]:
    return _select(specs if patterns else roles_of(specs).weights, patterns)


def _select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return list(select(names, patterns, argument="--layers") if patterns else names)


def _finite(value: float) -> Number:
    return float(value) if math.isfinite(value) else None
