"""Tensors that share memory: tied weights, and views of one storage.

Invariant: what is tied stays tied, and is never given two contents of which one would silently win.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from safepoint.adapters.torch import blank, tensors
from safepoint.errors import MismatchError
from safepoint.tree import Tensor


def place(tensor: Any) -> object:
    """Equal for tensors over one storage; what has no storage is only equal to itself."""
    return id(tensor) if tensors.why_not(tensor) else _storage(tensor)


def _storage(tensor: Any) -> object:
    storage = tensor.untyped_storage()
    return (str(tensor.device), storage.data_ptr()) if storage.data_ptr() else storage._cdata


def tied(live: Mapping[str, Any]) -> Iterator[list[str]]:
    """Groups of names that are the very same elements."""
    same: dict[object, list[str]] = {}
    for name, tensor in live.items():
        if blank.is_blank(tensor):
            same.setdefault(id(tensor), []).append(name)
        elif not tensors.why_not(tensor) and tensor.numel():
            elements = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            same.setdefault((_storage(tensor), *elements), []).append(name)
    return (group for group in same.values() if len(group) > 1)


def check(live: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Refuse what live memory cannot hold; changes nothing.

    Raises:
        MismatchError: tensors that are one in `live`, or overlap in it, differ in `found`.
    """
    ours = {name: live[name] for name in found}
    for first, *others in tied(ours):
        content = found[first].read()
        bad = next((name for name in others if not np.array_equal(found[name].read(), content)), None)
        if bad is not None:
            raise MismatchError(
                f"{first} and {bad} are one tensor in the live model and two different ones in the snapshot",
                differs={bad: (f"tied to {first}", "a tensor of its own")},
                hint="build the model without tying them, or take one of them with select=",
            )
    for names in _overlapping(ours):
        if not tensors.keeps({n: live[n] for n in names}, {n: found[n].read() for n in names}):
            raise MismatchError(
                f"{', '.join(names)}: live elements share memory, and the snapshot has different values for them",
                differs=dict.fromkeys(names, ("views of one memory", "tensors that differ")),
                hint="make the live tensors contiguous and separate (clone()) before restoring",
            )


def _overlapping(live: Mapping[str, Any]) -> Iterable[list[str]]:
    """Groups of names in one storage of the CPU whose elements may overlap without being the same."""
    groups: dict[object, dict[tuple[int, int, object], str]] = {}
    for name, tensor in live.items():
        if tensors.why_not(tensor) or not tensors.on_host(tensor):
            continue
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.itemsize
        span = (start, start + (reach + 1) * tensor.itemsize, (tuple(tensor.shape), tensor.stride(), tensor.dtype))
        groups.setdefault(_storage(tensor), {}).setdefault(span, name)
    for spans in groups.values():
        ordered = sorted(span[:2] for span in spans)
        crossing = any(after[0] < before[1] for before, after in pairwise(ordered))
        if crossing or any(tensors.overlaps_itself(live[name]) for name in spans.values()):
            yield list(spans.values())
