"""Comparing what live objects want with what a snapshot has: every difference, found before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from safepoint.errors import MismatchError
from safepoint.tree.leaves import Leaf, Tensor, TensorSpec, describe
from safepoint.tree.names import nearest

_MOST_LINES = 20


@final
@dataclass(frozen=True, slots=True)
class Match:
    """All that a comparison found; names in the order of the live tree, then of the saved one.

    Attributes:
        matched: names on both sides with equal specs (values always match).
        missing: live names that the saved tree lacks.
        unexpected: saved names that the live tree lacks.
        reshaped: name → (live, saved) specs, shapes differ.
        retyped: name → (live, saved) specs, only dtypes differ.
        clashing: names that are a tensor on one side and a value on the other.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, tuple[TensorSpec, TensorSpec]]
    retyped: Mapping[str, tuple[TensorSpec, TensorSpec]]
    clashing: Mapping[str, tuple[str, str]]

    def error(
        self, source: str, *, cast: bool, elsewhere: Iterable[str] = (), advice: str | None = None
    ) -> MismatchError | None:
        """One error listing every difference with the nearest name, or None if a strict restore may go on."""
        differs: dict[str, tuple[object, object]] = {**self.reshaped, **self.clashing}
        if not cast:
            differs.update(self.retyped)
        if not (self.missing or self.unexpected or differs):
            return None
        lines: list[str] = []
        for name in self.missing:
            close = nearest(name, [*self.unexpected, *elsewhere])
            lines.append(f"missing     {name}" + (f"   (nearest in the snapshot: {close})" if close else ""))
        lines += [f"unexpected  {name}" for name in self.unexpected]
        lines += [f"differs     {name}   live {live}, saved {saved}" for name, (live, saved) in differs.items()]
        shown = lines[:_MOST_LINES]
        if len(lines) > len(shown):
            shown.append(f"... and {len(lines) - len(shown)} more (all are in the error's attributes)")
        retyped = differs.keys() & self.retyped.keys()
        return MismatchError(
            f"{source} does not fit the live objects; nothing was changed\n    " + "\n    ".join(shown),
            missing=self.missing,
            unexpected=self.unexpected,
            differs=differs,
            hint=(f"{advice}; " if advice else "")
            + "rename={regex: replacement} maps names, select=[glob] takes a part, optional=[name] allows absence, "
            + ("cast=True converts dtypes, " if retyped else "")
            + "strict=False takes what fits",
        )


def match(live: Mapping[str, Leaf], saved: Mapping[str, Leaf]) -> Match:
    """Compare two sets of leaves by name, shape and dtype; pure, reads no tensor."""
    reshaped: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    retyped: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    clashing: dict[str, tuple[str, str]] = {}
    matched: list[str] = []
    for name, ours in live.items():
        if name not in saved:
            continue
        theirs = saved[name]
        if isinstance(ours, Tensor) != isinstance(theirs, Tensor):
            clashing[name] = (describe(ours), describe(theirs))
        elif isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.spec != theirs.spec:
            same_shape = ours.spec.shape == theirs.spec.shape
            (retyped if same_shape else reshaped)[name] = (ours.spec, theirs.spec)
        else:
            matched.append(name)
    return Match(
        tuple(matched),
        tuple(name for name in live if name not in saved),
        tuple(name for name in saved if name not in live),
        reshaped,
        retyped,
        clashing,
    )
