"""How far tensors moved from one snapshot to another: blocks of the same digest are not read, and none is twice."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from safepoint.codec import BLOCK_BYTES, digest
from safepoint.repository import Manifest, Workers
from safepoint.tree import Tensor, dtype_of

_RUN_ELEMENTS = 64 << 10  # stays in a core's cache, in double precision too
_KIND = "distance 1"  # counted up when the number means something else
_WIDTH = 1


def moved_by(pool: Workers, before: Manifest, now: Manifest, names: Iterable[str]) -> dict[str, float]:
    """Name → the Euclidean norm of the difference; not a number where one of them is not.

    The tensors have the same shape and dtype in both. What is worked out of two blocks is kept in `derived/`.

    Raises:
        CorruptionError: a block cannot be read as it was written.
    """
    known = now.derived.known(_WIDTH)
    keys: dict[str, list[bytes]] = {}
    todo: dict[bytes, tuple[Tensor, Tensor, int, int]] = {}
    for name in names:
        old, new = before.stored[name], now.stored[name]
        keys[name] = []
        for index, (a, b) in enumerate(zip(old.blocks, new.blocks, strict=True)):
            if a.digest == b.digest:
                continue
            key = bytes.fromhex(digest(f"{_KIND}\0{new.spec.dtype}\0{a.digest}\0{b.digest}".encode()))
            keys[name].append(key)
            if key not in known:
                start = index * BLOCK_BYTES
                tensors = before.tree.tensors[name], now.tree.tensors[name]
                todo.setdefault(key, (*tensors, start, start + b.length))
    found = dict(zip(todo, pool.map(lambda task: _squares(*task), todo.values()), strict=True))
    now.derived.add(found, width=_WIDTH)
    return {
        name: math.sqrt(sum(float((found[key] if key in found else known[key])[0]) for key in theirs))
        for name, theirs in keys.items()
    }


def _squares(before: Tensor, now: Tensor, start: int, stop: int) -> NDArray[np.float64]:
    dtype = dtype_of(now.spec.dtype)
    a, b = before.part(start, stop).view(dtype), now.part(start, stop).view(dtype)
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for place in range(0, len(b), _RUN_ELEMENTS):
            run = slice(place, place + _RUN_ELEMENTS)
            delta = b[run].astype(np.float64) - a[run].astype(np.float64)
            total += float(np.dot(delta, delta))
    return np.array([total])
