"""Statistics of tensors, read block by block: what a person looks at first, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from safepoint.api import numbers
from safepoint.api.dead import dead_lines, may_be_dead
from safepoint.api.numbers import WIDTH, Numbers, add_up, has_numbers, quantiles_of, wide_runs
from safepoint.codec import BLOCK_BYTES, cut, digest
from safepoint.formats import Contents
from safepoint.repository import Derived, Manifest, ModelFile, Progress, Stored, Workers
from safepoint.tree import Tensor, TensorSpec, dtype_of

QUANTILES = numbers.QUANTILES
"""The probabilities of `Stats.quantiles`."""

_PIECE_BYTES = 1 << 20  # of a stranger's file: stays in the cache between the disk's buffer and the arithmetic
_THREADS = 2
_DEAD_WIDTH = 2
_KIND = "1"  # counted up when a row means something else: what is kept of the old kind is then not found


@final
@dataclass(frozen=True, slots=True)
class Stats:
    """What a tensor's elements are like; of complex ones, their magnitudes. None where there are none.

    Attributes:
        minimum: of the finite elements.
        maximum: of the finite elements.
        mean: of the finite elements.
        std: their standard deviation, not corrected.
        norm: their Euclidean norm.
        quantiles: of the finite elements, at `QUANTILES`; exact up to 65,536 elements, else of a sample: at least
            16,384 elements, evenly spaced, of each block of 16 MiB.
        zeros: elements that are zero.
        nans: elements that are NaN.
        infinities: elements that are infinite.
        elements: all of them.
        dead_rows: slices along the first axis that are zero throughout, of two axes or more.
        dead_columns: slices along the last axis that are.
        same_as: the first tensor of those measured with it that has the same shape, dtype and bytes, unless all
            elements are the same.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    norm: float | None
    quantiles: tuple[float, ...] | None
    zeros: int
    nans: int
    infinities: int
    elements: int
    dead_rows: int = 0
    dead_columns: int = 0
    same_as: str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether there are several elements, finite and all the same."""
        return self.elements > 1 and self.minimum == self.maximum and not self.nans and not self.infinities

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, the worst first, in words."""
        found = []
        if self.nans:
            found.append(f"{self.nans:,} NaN")
        if self.infinities:
            found.append(f"{self.infinities:,} infinite")
        if self.is_constant:
            found.append("all zero" if self.minimum == 0 else "all the same")
        if self.dead_rows:
            found.append(f"{self.dead_rows:,} dead row{'s' if self.dead_rows > 1 else ''}")
        if self.dead_columns:
            found.append(f"{self.dead_columns:,} dead column{'s' if self.dead_columns > 1 else ''}")
        if self.same_as is not None:
            found.append(f"same as {self.same_as}")
        return tuple(found)


def measure(
    tensors: Mapping[str, Tensor],
    *,
    source: Manifest | ModelFile | Contents | None = None,
    progress: Progress | None = None,
) -> Mapping[str, Stats]:
    """Statistics of each tensor that has numbers; two blocks at a time, and a few megabytes of memory for each.

    Of a snapshot, what is found of a block is kept in the repository's `derived/` and not read again.

    Args:
        tensors: by the names that `source` has for them.
        source: what they are of, if anything.
        progress: see `Progress`.

    Raises:
        CorruptionError: one cannot be read as it was written.
    """
    wanted = {name: tensor for name, tensor in tensors.items() if has_numbers(tensor.spec.dtype)}
    stored = {n: source.stored[n] for n in wanted} if isinstance(source, Manifest | ModelFile) else {}
    derived = source.derived if isinstance(source, Manifest) else None
    with Workers(_THREADS, "safepoint-stats") as pool:
        rows = _rows(pool, wanted, stored, derived, progress)
        stats = {name: _stats(row, wanted[name].spec) for name, row in rows.items()}
        for name, (dead_rows, dead_columns) in _dead(pool, wanted, stats, stored, derived).items():
            stats[name] = replace(stats[name], dead_rows=dead_rows, dead_columns=dead_columns)
        for name, first in _twins(pool, wanted, stats, stored).items():
            stats[name] = replace(stats[name], same_as=first)
    return stats


def _rows(
    pool: Workers,
    tensors: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
    derived: Derived | None,
    progress: Progress | None,
) -> dict[str, NDArray[np.float64]]:
    """The row of each tensor; each block that is not known is read once, wherever it stands."""
    known = {} if derived is None else derived.known(WIDTH)
    places: dict[str, list[bytes]] = {}
    todo: dict[bytes, tuple[Tensor, int, int, int]] = {}
    for name, tensor in tensors.items():
        keys = []
        for index, (start, length) in enumerate(_parts(tensor)):
            identity = stored[name].blocks[index].digest if name in stored else f"{name}\0{index}"
            keys.append(_key("block", tensor.spec.dtype, identity))
            if keys[-1] not in known:
                todo.setdefault(keys[-1], (tensor, start, length, _step(name, stored)))
        places[name] = keys
    found: dict[bytes, NDArray[np.float64]] = {}
    done, total = 0, sum(length for _, _, length, _ in todo.values())
    for key, row in zip(todo, pool.map(lambda task: _row(*task), todo.values()), strict=True):
        found[key] = row
        done += todo[key][2]
        if progress is not None:
            progress(done, total)
    if derived is not None:
        derived.add(found, width=WIDTH)
    return {name: add_up([found[k] if k in found else known[k] for k in keys]) for name, keys in places.items()}


def _parts(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """(first byte, length) of what is read by itself."""
    if tensor.read_range is not None:
        yield from cut(tensor.spec.num_bytes)
    elif tensor.spec.num_bytes:
        yield 0, tensor.spec.num_bytes


def _key(*words: str) -> bytes:
    return bytes.fromhex(digest("\0".join((_KIND, *words)).encode("utf-8", "surrogatepass")))


def _step(name: str, stored: Mapping[str, Stored]) -> int:
    """Bytes to read at once: of our own files whole blocks, which are verified as one."""
    return BLOCK_BYTES if name in stored else _PIECE_BYTES


def _row(tensor: Tensor, start: int, length: int, step: int) -> NDArray[np.float64]:
    dtype = dtype_of(tensor.spec.dtype)
    running = Numbers(length // dtype.itemsize)
    for piece in _pieces(tensor, start, length, step):
        for values in wide_runs(piece, tensor.spec.dtype):
            running.add(values)
    return running.row()


def _pieces(tensor: Tensor, start: int, length: int, step: int) -> Iterator[NDArray[Any]]:
    dtype = dtype_of(tensor.spec.dtype)
    if tensor.read_range is None:
        step = max(1, length)
    for first in range(start, start + length, step):
        yield tensor.part(first, min(first + step, start + length)).view(dtype)


def _stats(row: NDArray[np.float64], spec: TensorSpec) -> Stats:
    zeros, nans, infinities = (int(row[field]) for field in (numbers.ZEROS, numbers.NANS, numbers.INFINITIES))
    count = row[numbers.FINITE]
    if not count:
        return Stats(None, None, None, None, None, None, zeros, nans, infinities, spec.num_elements)
    mean = float(row[numbers.MEAN])
    with np.errstate(over="ignore"):
        squares = float(row[numbers.SQUARES] + count * row[numbers.MEAN] ** 2)
    return Stats(
        float(row[numbers.MINIMUM]),
        float(row[numbers.MAXIMUM]),
        _finite(mean),
        _finite(math.sqrt(row[numbers.SQUARES] / count)),
        _finite(math.sqrt(squares)),
        quantiles_of(row),
        zeros,
        nans,
        infinities,
        spec.num_elements,
    )


def _finite(value: float) -> float | None:
    """None for what is beyond double precision."""
    return value if math.isfinite(value) else None


def _dead(
    pool: Workers,
    tensors: Mapping[str, Tensor],
    stats: Mapping[str, Stats],
    stored: Mapping[str, Stored],
    derived: Derived | None,
) -> dict[str, tuple[int, int]]:
    """Dead rows and columns of those tensors that have zeros enough; they are read once more, and only they."""
    known = {} if derived is None else derived.known(_DEAD_WIDTH)
    names = [name for name, one in stats.items() if may_be_dead(tensors[name].spec, one.zeros)]
    keys = {name: _key("dead", str(tensors[name].spec), *_identity(name, stored)) for name in names}
    todo = {keys[name]: (tensors[name], _step(name, stored)) for name in names if keys[name] not in known}
    found = dict(zip(todo, pool.map(lambda task: _lines(*task), todo.values()), strict=True))
    if derived is not None:
        derived.add(found, width=_DEAD_WIDTH)
    rows = {name: found[key] if key in found else known[key] for name, key in keys.items()}
    return {name: (int(row[0]), int(row[1])) for name, row in rows.items()}


def _identity(name: str, stored: Mapping[str, Stored]) -> list[str]:
    return [block.digest for block in stored[name].blocks] if name in stored else [name]


def _lines(tensor: Tensor, step: int) -> NDArray[np.float64]:
    spec = tensor.spec
    runs = (
        values != 0
        for start, length in _parts(tensor)
        for piece in _pieces(tensor, start, length, step)
        for values in wide_runs(piece, spec.dtype)
    )
    return np.array(dead_lines(spec, runs), np.float64)


def _twins(
    pool: Workers, tensors: Mapping[str, Tensor], stats: Mapping[str, Stats], stored: Mapping[str, Stored]
) -> dict[str, str]:
    """Name → the first one with the same bytes.

    Of our own files digests tell; of others, those are compared of which all statistics are equal.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, one in stats.items():
        if one.elements > 1 and not one.is_constant:
            same = tuple(_identity(name, stored)) if name in stored else one
            groups.setdefault((tensors[name].spec, same), []).append(name)
    found: dict[str, str] = {}
    pairs = [(names[0], name) for names in groups.values() for name in names[1:]]
    equal = pool.map(lambda pair: pair[0] in stored or _equal(*(tensors[name] for name in pair)), pairs)
    for (first, name), is_twin in zip(pairs, equal, strict=True):
        if is_twin:
            found[name] = first
    return found


def _equal(first: Tensor, second: Tensor) -> bool:
    return all(
        np.array_equal(a.view(np.uint8), b.view(np.uint8))
        for start, length in _parts(first)
        for a, b in zip(*(_pieces(tensor, start, length, _PIECE_BYTES) for tensor in (first, second)), strict=True)
    )
