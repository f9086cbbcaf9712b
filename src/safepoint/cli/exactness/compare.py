"""Two runs compared moment by moment: what differs first, and what can have made it differ.

Invariant: only what the records say is used; each difference is looked at in the order in which the killed run lived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import final

from safepoint.cli.exactness.records import Moment, Variable

_ABSENT = "-"


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """The first moment at which the killed run is not the uninterrupted one.

    Attributes:
        step: that is finished.
        after: the step that the last resume before it restored; None before any kill.
        at_resume: whether it is right after that resume.
        names: `metrics/loss`, `model/encoder.weight`, `random/numpy` → (uninterrupted, killed), the first first.
        random: frameworks whose global random state was another right after that resume (or from the start).
        random_later: those that were equal then and are no longer.
        tracks_random: whether the manager saves random states.
        variables: what the script holds untracked, and was another then.
        data: what it reads from, untracked.
    """

    step: int
    after: int | None
    at_resume: bool
    names: dict[str, tuple[str, str]]
    random: tuple[str, ...] = ()
    random_later: tuple[str, ...] = ()
    tracks_random: bool = True
    variables: dict[str, Variable] = field(default_factory=dict)
    data: dict[str, Variable] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Compared:
    """How much was compared before something differed, if anything did.

    Attributes:
        saves: calls of `save`.
        digests: tensors, values, random states and metrics in them.
        difference: the first, or None.
    """

    saves: int
    digests: int
    difference: Difference | None


@final
class Reference:
    """The uninterrupted run."""

    def __init__(self, moments: Sequence[Moment], ignore: Sequence[str] = ()) -> None:
        self.saves = {(m.run, m.step): m for m in moments if m.event == "save"}
        self._order = [(m.run, m.step) for m in moments if m.event == "save"]
        self._ignore = tuple(ignore)
        self.drawn = _drawn([m for m in moments if m.event == "save"])

    def next_step(self, run: int, step: int) -> int | None:
        """The step that was saved after `step`."""
        steps = [s for r, s in self._order if r == run]
        later = steps[steps.index(step) + 1 :] if step in steps else []
        return later[0] if later else None

    def differences(self, one: Moment, other: Moment) -> dict[str, tuple[str, str]]:
        """Metrics, then leaves, that are not equal. After a resume only what both have: the rest may be made later."""
        found = {} if other.event == "resume" else _unequal(one.metrics, other.metrics, "metrics/")
        found |= _unequal(one.leaves, other.leaves, "", common=other.event == "resume")
        return {name: pair for name, pair in found.items() if not any(fnmatchcase(name, p) for p in self._ignore)}


def compare(reference: Reference, chain: Sequence[Sequence[Moment]]) -> Compared:
    """Follow the processes of a killed run until one is not the uninterrupted run."""
    saves = digests = 0
    resume: Moment | None = None
    began_alike: set[str] = set()  # random states that were equal before any kill: seeded
    for number, process in enumerate(chain):
        for moment in process:
            if moment.event == "resume":
                resume = moment if number else None
            same = reference.saves.get((moment.run, moment.step))
            if same is None or (moment.event == "resume" and resume is None):
                continue
            if number == 0:
                began_alike |= {name for name in same.random if same.random[name] == moment.random.get(name)}
            names = reference.differences(same, moment)
            names |= _lost_random(reference, same, moment, began_alike) if moment is resume else {}
            if names:
                return Compared(saves, digests, _explain(reference, moment, resume, names))
            digests += len(moment.leaves) + len(moment.random) + len(moment.metrics)
            saves += moment.event == "save"
    return Compared(saves, digests, None)


def _explain(
    reference: Reference, moment: Moment, resume: Moment | None, names: dict[str, tuple[str, str]]
) -> Difference:
    """With what the script holds at the resume before, or at this save where there was none."""
    here = resume or moment
    there = reference.saves.get((here.run, here.step))
    if there is None:
        return Difference(moment.step, None if resume is None else resume.step, moment is resume, names)
    random = [n for n in there.random if n in reference.drawn and there.random[n] != here.random.get(n)]
    variables = {
        name: variable
        for name, variable in here.variables.items()
        if name in there.variables and variable.kind != "data" and there.variables[name] != variable
    }
    if resume is None:  # what moves, and is no generator, is another because the run is
        variables = {n: v for n, v in variables.items() if n not in reference.drawn or v.kind == "generator"}
    return Difference(
        moment.step,
        None if resume is None else resume.step,
        moment is resume,
        names,
        tuple(random),
        tuple(_later(reference, moment, random)),
        here.tracks_random,
        dict(sorted(variables.items(), key=lambda item: _rank(reference, *item))),
        {name: variable for name, variable in moment.variables.items() if variable.kind == "data"},
    )


def _later(reference: Reference, moment: Moment, before: Sequence[str]) -> list[str]:
    there = reference.saves[moment.run, moment.step].random
    return [n for n in there if n in reference.drawn and n not in before and there[n] != moment.random.get(n)]


def _lost_random(reference: Reference, one: Moment, other: Moment, seeded: set[str]) -> dict[str, tuple[str, str]]:
    """Global random states that the script draws from and that are another after a resume."""
    return {
        f"random/{name}": (one.random[name], other.random.get(name, _ABSENT))
        for name in one.random
        if name in reference.drawn and name in seeded and one.random[name] != other.random.get(name)
    }


def _rank(reference: Reference, name: str, variable: Variable) -> tuple[bool, int]:
    """What moves during the run before what stands still; generators before the rest."""
    kinds = ("generator", "state", "array", "value")
    return (name not in reference.drawn, kinds.index(variable.kind))


def _drawn(saves: Sequence[Moment]) -> set[str]:
    """Random states and variables that do not stay the same during the run."""
    seen: dict[str, set[str]] = {}
    for moment in saves:
        for name, digest in moment.random.items():
            seen.setdefault(name, set()).add(digest)
        for name, variable in moment.variables.items():
            seen.setdefault(name, set()).add(variable.digest)
    return {name for name, digests in seen.items() if len(digests) > 1}


def _unequal(
    one: dict[str, str], other: dict[str, str], prefix: str, *, common: bool = False
) -> dict[str, tuple[str, str]]:
    names = [name for name in one if name in other] if common else list(dict.fromkeys([*one, *other]))
    return {
        f"{prefix}{name}": (one.get(name, _ABSENT), other.get(name, _ABSENT))
        for name in names
        if one.get(name) != other.get(name)
    }
