"""The health of a run: where something went wrong first, what shows it, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from safepoint.api.course import Course, follow
from safepoint.api.symptoms import Kind, Symptom, always_equal, never_moved, symptoms
from safepoint.repository import Progress, Repository, Snapshot

_ENOUGH = 3  # snapshots, to tell what stands still
_NEXT: dict[Kind, str] = {
    "not finite": "restore the last good one; a smaller learning rate, clipped gradients, or a look at the data since",
    "exploding": "restore the last good one; a smaller learning rate, clipped gradients or warm-up",
    "dead units": "restore the last good one: they do not come back; a smaller learning rate, another activation",
    "standing still": "see whether its learning rate is zero, or its updates are too small for its dtype",
    "moments at zero": "see whether a gradient reaches these weights, and whether the optimizer was restored with them",
    "duplicates": "see whether one was loaded or assigned in place of the other; restore the last good one",
}


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something that went wrong.

    Attributes:
        kind: of it.
        snapshot: the first that shows it.
        last_good: the one before, or None.
        evidence: name of a tensor or metric → numbers in words.
        advice: what to do next.
    """

    kind: Kind
    snapshot: Snapshot
    last_good: Snapshot | None
    evidence: dict[str, str]
    advice: str


@final
@dataclass(frozen=True, slots=True)
class Health:
    """What was found in a run.

    Attributes:
        findings: in the order of steps; one of a kind, the first.
        notes: what is as it should be if it was meant, in words.
        snapshots: that were looked at.
        num_weights: that were looked at.
        num_moments: of optimizers, that were looked at.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    snapshots: tuple[Snapshot, ...]
    num_weights: int
    num_moments: int


def examine(repository: Repository, *, at_most: int | None = None, progress: Progress | None = None) -> Health:
    """Look at every weight and moment in the newest lineage; what was measured before is not read again.

    Rules are over snapshots, so what begins and ends between two is not seen.

    Args:
        repository: of the run.
        at_most: snapshots to look at, evenly chosen.
        progress: called with (bytes done, bytes in all).

    Raises:
        NotFoundError: no snapshot is there.
        CorruptionError: something cannot be read as it was written.
    """
    course = follow(repository, lambda r: (*r.weights, *r.moments), at_most=at_most, progress=progress)
    findings = tuple(_finding(course, symptom) for symptom in symptoms(course))
    weights = [name for name in course.roles.weights if name in course.specs]
    moments = [name for name in course.roles.moments if name in course.specs]
    damaged = [f"{error.message}: nothing before it was looked at" for error in repository.history()[1].values()]
    return Health(findings, (*damaged, *_notes(course)), course.snapshots, len(weights), len(moments))


def _finding(course: Course, symptom: Symptom) -> Finding:
    before = course.snapshots[symptom.at - 1] if symptom.at else None
    return Finding(symptom.kind, course.snapshots[symptom.at], before, symptom.evidence, _NEXT[symptom.kind])


def _notes(course: Course) -> list[str]:
    notes = []
    if course.passed_over:
        notes.append(f"{course.passed_over} snapshots between them were not looked at")
    if len(course.snapshots) < _ENOUGH:
        notes.append(f"{_ENOUGH} snapshots are needed to tell what stands still")
    still = never_moved(course)
    if still:
        notes.append(f"never moved, frozen on purpose? {_some(still)}")
    equal = always_equal(course)
    if equal:
        notes.append(f"always the same, tied? {_some([f'{a} = {b}' for a, b in equal])}")
    return notes


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
