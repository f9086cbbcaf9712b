"""Two states compared: structure first, then how far each tensor moved; equal blocks of our own files are not read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.api.change_rank import MOST_RANKS, ChangeRank, has_rank
from safepoint.api.numbers import dot, has_numbers, wide_runs
from safepoint.api.open import Tensors
from safepoint.codec import BLOCK_BYTES
from safepoint.repository import Manifest, ModelFile, Progress, Workers
from safepoint.tree import DTYPES, Tensor, TensorSpec, dtype_of, rename

_RUN_ELEMENTS = 16 << 10  # stays in a core's cache, in double precision too
_SMALL_RANK = 16  # a matrix that cannot have more says nothing of how it was trained
_THREADS = 2
_RANDOM = re.compile(r"(ranks/\d+/)?random/")  # random state of a snapshot: numbers without a distance


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """How far a tensor moved, over the blocks that differ.

    Attributes:
        name: in both, after renaming.
        relative: Euclidean norm of the difference by that of the first; infinite where that is zero.
        largest: difference of one element.
        cosine: of the angle between them, or None where one is zero.
        share: of all elements, how many changed.
        rank: of the change of a matrix of at most 65,536 columns, as far as it stands out from rounding (0: it does
            not); 128 means that or more. None of what is no matrix.
        full_rank: the highest that a matrix of its shape can have; None where `rank` is.
    """

    name: str
    relative: float
    largest: float
    cosine: float | None
    share: float
    rank: int | None = None
    full_rank: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two states; names are the second's, after the first's were renamed.

    Attributes:
        added: names that only the second has.
        removed: names that only the first has.
        reshaped: name → (first, second), shapes differ.
        retyped: name → (first, second), only dtypes differ.
        values: name → (first, second), of plain values.
        moved: tensors whose elements differ, the most first.
        equal: how many tensors have the same bytes.
        opaque: names whose bytes differ, of a dtype without numbers or of random state, which has no distance.
        rules: regular expression → replacement, that the first's names went through: those asked for or, where the two
            have no name in common, a prefix of one of them.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reshaped: Mapping[str, tuple[TensorSpec, TensorSpec]]
    retyped: Mapping[str, tuple[TensorSpec, TensorSpec]]
    values: Mapping[str, tuple[Any, Any]]
    moved: tuple[Moved, ...]
    equal: int
    opaque: tuple[str, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        named = (self.added, self.removed, self.reshaped, self.retyped, self.values, self.moved, self.opaque)
        return not any(named)

    @property
    def low_rank(self) -> int | None:
        """The highest rank of a change, if matrices moved and all by few ranks, as adapters (LoRA) move them."""
        ranks = [(item.rank, item.full_rank) for item in self.moved if item.rank is not None and item.full_rank]
        ranks = [(rank, full) for rank, full in ranks if full >= _SMALL_RANK]
        is_low = all(rank <= min(MOST_RANKS - 1, full // 4) for rank, full in ranks)
        return max(rank for rank, _ in ranks) if ranks and is_low else None


def compare(
    first: Tensors, second: Tensors, *, rules: Mapping[str, str] | None = None, progress: Progress | None = None
) -> Difference:
    """Compare two opened states; a few megabytes of memory, whatever their size.

    Args:
        first: what it was.
        second: what it became.
        rules: regular expression → replacement, over the first's names. None: names are compared as they are, unless
            none is in both and one of the two has a prefix that the other lacks, such as the `model/` of a snapshot.
        progress: see `Progress`; of both together.

    Raises:
        MismatchError: a rule matches nothing, or makes two names one.
        CorruptionError: one of them cannot be read as it was written.
    """
    rules = _prefix(first.tree.leaves, second.tree.leaves) if rules is None else rules
    theirs = rename(first.tree.leaves, rules)
    ours = {new: old for old, new in theirs.items()}
    mine, other = {new: first.specs[old] for new, old in ours.items() if old in first}, second.specs
    both = [name for name in other if name in mine]
    reshaped = {name: (mine[name], other[name]) for name in both if mine[name].shape != other[name].shape}
    retyped = {name: (mine[name], other[name]) for name in both if name not in reshaped and mine[name] != other[name]}
    plain = {new: first.plain[old] for new, old in ours.items() if old in first.plain}
    values = {n: (plain[n], v) for n, v in second.plain.items() if n in plain and repr(plain[n]) != repr(v)}
    names = set(second.tree.leaves)
    todo = [name for name in both if name not in reshaped]
    with Workers(_THREADS, "safepoint-compare") as pool:
        sizes = {name: mine[name].num_bytes + other[name].num_bytes for name in todo}
        found, done, total = [], 0, sum(sizes.values())
        for name, item in zip(todo, pool.map(lambda n: _compare(first, ours[n], second, n), todo), strict=True):
            found.append(item)
            done += sizes[name]
            if progress is not None:
                progress(done, total)
    moved = sorted((item for item in found if isinstance(item, Moved)), key=lambda item: -item.relative)
    return Difference(
        tuple(name for name in second.tree.leaves if name not in ours),
        tuple(name for name in ours if name not in names),
        reshaped,
        retyped,
        values,
        tuple(moved),
        sum(item is None for item in found),
        tuple(item for item in found if isinstance(item, str)),
        rules,
    )


def _prefix(first: Collection[str], second: Collection[str]) -> dict[str, str]:
    """The rule that takes from the first's names, or gives them, the first part that only one of the two has.

    None where two names would become one: nobody asked for it.
    """
    if not set(first).isdisjoint(second):
        return {}
    longer, mine = _most(first, second), _most(second, first)
    if longer[1] > mine[1]:
        rest = [name.removeprefix(longer[0]) for name in first]
        return {f"^{re.escape(longer[0])}": ""} if len({*rest}) == len(rest) else {}
    return {"^": mine[0].replace("\\", r"\\")} if mine[1] else {}


def _most(names: Collection[str], others: Collection[str]) -> tuple[str, int]:
    """The first part of names (`model/`, `module.`) without which the most are among the others, and how many are."""
    others = set(others)
    found = Counter(
        match[0] for name in names if (match := re.match("[^/.]*[/.]", name)) and name[match.end() :] in others
    )
    return found.most_common(1)[0] if found else ("", 0)


def _compare(first: Tensors, old: str, second: Tensors, new: str) -> Moved | str | None:
    a, b = first.tree.tensors[old], second.tree.tensors[new]
    has_no_distance = _RANDOM.match(old) is not None and first.kind == second.kind == "snapshot"
    spans = _spans(first.source, old, second.source, new, a.spec, b.spec)
    if has_no_distance or not (has_numbers(a.spec.dtype) and has_numbers(b.spec.dtype)):
        size = DTYPES[a.spec.dtype].itemsize
        parts = ((start * size, stop * size) for start, stop in spans)
        same = a.spec == b.spec and all(np.array_equal(a.part(*part), b.part(*part)) for part in parts)
        return None if same else new
    running = _Running(a.spec, b.spec)
    for start, stop in spans:
        running.add(_elements(a, start, stop), _elements(b, start, stop), start)
    return running.moved(new)


def _spans(
    first: object, old: str, second: object, new: str, a: TensorSpec, b: TensorSpec
) -> Iterator[tuple[int, int]]:
    """Elements that may differ: of two of our own files, those of blocks whose digests do."""
    if a != b or not isinstance(first, Manifest | ModelFile) or not isinstance(second, Manifest | ModelFile):
        step = BLOCK_BYTES // DTYPES[a.dtype].itemsize
        for start in range(0, a.num_elements, step):
            yield start, min(a.num_elements, start + step)
        return
    itemsize = DTYPES[a.dtype].itemsize
    pairs = zip(first.stored[old].blocks, second.stored[new].blocks, strict=True)
    for index, (before, after) in enumerate(pairs):
        if before.digest != after.digest:
            start = index * BLOCK_BYTES // itemsize
            yield start, start + after.length // itemsize


def _elements(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    itemsize = DTYPES[tensor.spec.dtype].itemsize
    return tensor.part(start * itemsize, stop * itemsize).view(dtype_of(tensor.spec.dtype))


class _Running:
    """Sums over what came so far, in double precision."""

    def __init__(self, first: TensorSpec, second: TensorSpec) -> None:
        self._specs = (first, second)
        self._complex = any(spec.dtype.startswith("complex") for spec in self._specs)
        self._has_rank = not self._complex and has_rank(first)
        self._changed = 0
        self._largest = 0.0
        self._sums = np.zeros(4)  # of a², b², ab, (b - a)²
        self._ranks: ChangeRank | None = None

    def add(self, before: NDArray[Any], after: NDArray[Any], start: int) -> None:
        """Take a stretch of both, which begins at element `start`."""
        delta = np.zeros(len(before), np.float32) if self._has_rank else None
        known = self._changed
        for position in range(0, len(before), _RUN_ELEMENTS):
            run = slice(position, position + _RUN_ELEMENTS)
            a, b = self._wide(before[run], 0), self._wide(after[run], 1)
            if before.dtype == after.dtype and before[run].tobytes() == after[run].tobytes():
                self._add_equal(a)
            elif delta is None:
                self._add(a, b)
            else:
                with np.errstate(over="ignore"):
                    delta[run] = self._add(a, b)
        if delta is not None and self._changed > known:
            self._ranks = self._ranks or ChangeRank(*self._specs)
            self._ranks.add(delta, start)

    def _wide(self, run: NDArray[Any], which: int) -> NDArray[Any]:
        if self._complex:
            return run.astype(np.complex128)
        return next(wide_runs(run, self._specs[which].dtype)).astype(np.float64)

    def _add_equal(self, a: NDArray[Any]) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.vdot(a, a).real if self._complex else dot(a, a)
            if not math.isfinite(squares):
                finite = np.where(np.isfinite(a), a, 0)
                squares = np.vdot(finite, finite).real
        self._sums[:3] += squares

    def _add(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """The change of a run."""
        if self._complex:
            return self._add_any(a, b)
        with np.errstate(invalid="ignore", over="ignore"):
            delta: NDArray[Any] = b - a
            sums = [dot(a, a), dot(b, b), dot(a, b), dot(delta, delta)]
        if not math.isfinite(sum(sums)):
            return self._add_any(a, b)
        self._changed += int(np.count_nonzero(a != b))
        self._largest = max(self._largest, float(delta.max()), -float(delta.min()))
        self._sums += sums
        return delta

    def _add_any(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """As `_add`, of numbers that may not be finite; what is NaN in both did not change."""
        changed = (a != b) & ~(np.isnan(a) & np.isnan(b))
        self._changed += int(np.count_nonzero(changed))
        with np.errstate(invalid="ignore", over="ignore"):
            delta = np.where(changed, b - a, 0)
            far = np.abs(delta)
            far[np.isnan(far)] = np.inf
            self._largest = max(self._largest, float(far.max(initial=0.0)))
            x, y = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
            sums = [np.vdot(x, x).real, np.vdot(y, y).real, np.vdot(x, y).real, np.dot(far, far)]
            self._sums += sums
        return delta

    def moved(self, name: str) -> Moved | None:
        """What they amount to; None: nothing changed."""
        if not self._changed:
            return None
        a, b, ab, delta = map(float, self._sums)
        share = self._changed / self._specs[0].num_elements
        if not all(map(math.isfinite, (a, b, ab))):  # squares beyond double precision
            return Moved(name, math.inf, self._largest, None, share)
        relative = math.sqrt(delta / a) if a else math.inf
        cosine = ab / math.sqrt(a * b) if a and b else None
        rank = full = None
        if self._ranks is not None and math.isfinite(delta):
            rank = self._ranks.rank(before=max(a, b), change=delta)
            full = None if rank is None else min(self._specs[0].shape)
        return Moved(name, relative, self._largest, cosine, share, rank, full)
