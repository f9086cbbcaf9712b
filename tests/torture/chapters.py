"""A life told step by step: what was known after each, so that whoever is cut short can be asked for exactly that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.torture.life import Known, Step, collect, compact, prune, repair, save, save_in_background, sign, tag

from safepoint.repository import Repository


@dataclass
class Chapters:
    """Steps, and what the world was told after each of them."""

    steps: Sequence[Step]
    told: list[Known]

    def known_after(self, num_steps: int) -> Known:
        """What must be there, and what may, when the step after these was cut short."""
        known = copy.deepcopy(self.told[num_steps])
        later = self.told[min(num_steps + 1, len(self.steps))]
        known.attempted = next((later.content[n] for n in later.content if n not in known.content), None)
        known.maybe_pruned |= later.maybe_pruned
        return known

    def live(self, place: Path, say: Callable[[object], object], *, start: int = 0) -> None:
        """Do the steps, and say after each how many are done."""
        known = copy.deepcopy(self.told[start])
        repository = Repository(place)
        for number, step in enumerate(self.steps[start:], start):
            step(repository, known)
            say(number + 1)


def chapters(place: Path, steps: Sequence[Step]) -> Chapters:
    """Live through the steps undisturbed. The same steps give the same numbers again, but not the same ids."""
    known = Known()
    told = [copy.deepcopy(known)]
    repository = Repository(place)
    for step in steps:
        step(repository, known)
        told.append(copy.deepcopy(known))
    return Chapters(steps, told)


def any_life(rng: Random, *, length: int = 7) -> list[Step]:
    """Saves of both kinds, tags, signatures, prunes, collections, compactions and repairs in any order."""
    step = iter(range(100))
    kinds: dict[str, Callable[[], Step]] = {
        "save": lambda: save(next(step)),
        "background": lambda: save_in_background(next(step)),
        "tag": lambda: tag("latest", f"t{rng.randrange(1000)}"),
        "prune": lambda: prune(rng.randint(1, 3)),
        "collect": lambda: collect,
        "compact": lambda: compact,
        "repair": lambda: repair,
        "sign": lambda: sign,
    }
    chosen = ["save", *rng.choices(list(kinds), [4, 2, 2, 2, 2, 2, 1, 2], k=length), "save"]
    return [kinds[kind]() for kind in chosen]
