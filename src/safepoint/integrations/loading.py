"""What `Resumable` reads from a `DataLoader`: a copy of it with an order of our own; the loader is left alone.

Invariant: the order of an epoch is drawn from generators seeded with (seed, epoch), wherever an epoch is entered.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, final

import numpy as np
import torch
from torch.utils import data

from safepoint.errors import MismatchError, UnsupportedError
from safepoint.integrations.seeding import derived_seed, isolated, seed_everything

# Their order depends on nothing but their arguments, `generator` and `epoch`; all others are tried.
_KNOWN = (
    data.SequentialSampler,
    data.RandomSampler,
    data.SubsetRandomSampler,
    data.WeightedRandomSampler,
    data.BatchSampler,
    data.DistributedSampler,
)
_INNER = ("sampler", "batch_sampler")
_TRIED = 64


def source_of(loader: Any) -> Any:
    """The source of a loader's batches.

    Raises:
        UnsupportedError: its order cannot be controlled; the message says why.
    """
    if not isinstance(loader, data.DataLoader):
        raise UnsupportedError(
            f"{type(loader).__name__} is not a loader", hint="wrap it: safepoint.Resumable(DataLoader(...))"
        )
    if hasattr(loader, "state_dict"):
        raise UnsupportedError(f"{type(loader).__name__} keeps its own position", hint="track it itself, unwrapped")
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise UnsupportedError(
            "with in_order=False batches come in the order in which workers happen to finish",
            expected="DataLoader(..., in_order=True)",
        )
    if isinstance(loader.dataset, data.IterDataPipe | data.MapDataPipe):
        raise UnsupportedError("data pipes shuffle and shard by themselves", expected="a Dataset or IterableDataset")
    if isinstance(loader.dataset, data.IterableDataset):
        return _Stream(loader)
    return _Indexed(loader)


@final
class _Indexed:
    """A map-style dataset: batches are skipped by index, and each has a seed of its own in the workers."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._order = _Order(loader._index_sampler, in_workers=loader.num_workers > 0)
        self._copy = _copy_of(loader)
        which = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        self._copy.__dict__[which] = self._order  # DataLoader refuses to have it set
        _check_order(loader._index_sampler)

    def read(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of an epoch from number `skip` on, none before it loaded."""
        self._order.start(seed, epoch, skip)
        self._copy.generator = _generator(seed, epoch)
        return iter(self._copy)

    def shape(self) -> dict[str, int | str | None]:
        """What a position depends on."""
        return {
            "samples": _length(self._loader.dataset),
            "batches": _length(self._loader._index_sampler),
            "batch_size": self._loader.batch_size,
            "workers": None,
            "order": _kind_of_order(self._loader._index_sampler),
        }


@final
class _Stream:
    """An iterable dataset: batches before the position are read and dropped."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._copy = _copy_of(loader)
        # Workers that live on would go on with the random numbers of the epochs before.
        self._copy.__dict__["persistent_workers"] = False

    def read(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of an epoch from number `skip` on."""
        if hasattr(self._loader.dataset, "set_epoch"):
            self._loader.dataset.set_epoch(epoch)
        self._copy.generator = _generator(seed, epoch)
        start = partial(iter, self._copy)
        batches = start() if self._loader.num_workers else isolated(start, derived_seed(seed, epoch))
        for number in range(skip):
            if next(batches, self) is self:
                raise MismatchError(
                    f"the data ended after {number} batches", expected=f"more than the {skip} handed out before"
                )
        yield from batches

    def shape(self) -> dict[str, int | str | None]:
        """What a position depends on: each worker reads the dataset by itself, so how many there are, too."""
        return {
            "samples": _length(self._loader.dataset),
            "batches": None,
            "batch_size": self._loader.batch_size,
            "workers": self._loader.num_workers,
            "order": None,
        }


@final
class _Order:
    """The indices of one epoch, from one batch on; what the copied loader uses as its sampler."""

    def __init__(self, sampler: Any, *, in_workers: bool) -> None:
        self._sampler = sampler
        self._in_workers = in_workers
        self._where = (0, 0, 0)

    def start(self, seed: int, epoch: int, skip: int) -> None:
        """Choose what the next `iter` gives."""
        self._where = (seed, epoch, skip)

    def __iter__(self) -> Iterator[Any]:
        seed, epoch, skip = self._where
        order = islice(_ordered(self._sampler, seed, epoch), skip, None)
        if not self._in_workers:
            yield from order
            return
        for number, indices in enumerate(order, skip):
            yield _Seeded(indices, derived_seed(seed, epoch, number))

    def __len__(self) -> int:
        return len(self._sampler)


@final
class _Seeded:
    """Indices that seed the worker's generators as they arrive there.

    A worker's random state would else depend on the batches that this very worker loaded before, which a resumed run
    does not load. Seeding where the queue is read reaches every dataset, without a wrapper around it.
    """

    def __init__(self, indices: Any, seed: int) -> None:
        self._content = (indices, seed)

    def __reduce__(self) -> tuple[Any, tuple[Any, int]]:
        return _arrive, self._content


def _arrive(indices: Any, seed: int) -> Any:
    if data.get_worker_info() is not None:
        seed_everything(seed)
    return indices


def _ordered(sampler: Any, seed: int, epoch: int) -> Iterator[Any]:
    own = _own_sampler(sampler, seed, epoch)
    if _is_known(own):
        return iter(own)
    # It may draw from the global generators: from a seed of its own, all at once if it ends.
    order = isolated(lambda: iter(own), derived_seed(seed, epoch, -1))
    return order if _length(own) is None else iter(list(order))


def _own_sampler(sampler: Any, seed: int, epoch: int, depth: int = 0) -> Any:
    """A copy of a sampler with generators seeded by us in the place of its own, and its epoch set if it has one."""
    own = copy.copy(sampler)
    own_seed = derived_seed(seed, epoch, -2 - depth)
    for name, value in getattr(own, "__dict__", {}).items():
        if isinstance(value, torch.Generator) or (name == "generator" and value is None):
            own.__dict__[name] = torch.Generator().manual_seed(own_seed)
        elif isinstance(value, np.random.Generator):
            own.__dict__[name] = np.random.default_rng(own_seed)
        elif isinstance(value, random.Random):
            own.__dict__[name] = random.Random(own_seed)  # noqa: S311  # it is the kind the sampler has
    if callable(getattr(own, "set_epoch", None)):
        own.set_epoch(epoch)
    for name in _INNER:
        inner = getattr(own, name, None)
        if inner is not None and hasattr(inner, "__iter__") and not isinstance(inner, range | list | tuple):
            setattr(own, name, _own_sampler(inner, seed, epoch, depth + 1))
    return own


def _check_order(sampler: Any) -> None:
    """Refuse a sampler that gives another order when it is read a second time from the same start."""
    if _is_known(sampler):
        return
    for name in _INNER:  # the innermost that is to blame
        inner = getattr(sampler, name, None)
        if inner is not None:
            _check_order(inner)
    if hasattr(sampler, "__next__"):
        raise UnsupportedError(f"{type(sampler).__name__} is an iterator: its order can be read only once")
    own = _own_sampler(sampler, 0, 0)
    first = _start_of(own)
    second = _start_of(_own_sampler(own, 0, 0))  # of the one that was read: it may count its readings
    if first != second:
        raise UnsupportedError(
            f"the order of {type(sampler).__name__} depends on more than random generators that can be seeded",
            found="two readings of one epoch differ",
            hint="give it a `generator` attribute, or a `set_epoch(epoch)` that decides its order",
        )


def _start_of(sampler: Any) -> list[str]:
    return [repr(item) for item in islice(isolated(lambda: iter(sampler), 0), _TRIED)]


def _kind_of_order(sampler: Any) -> str:
    """`BatchSampler/RandomSampler`: who decides the order; with another sampler a position means other samples."""
    inner = next((value for name in _INNER if (value := getattr(sampler, name, None)) is not None), None)
    own = type(sampler).__name__
    return own if inner is None else f"{own}/{_kind_of_order(inner)}"


def _is_known(sampler: Any) -> bool:
    """Whether a sampler, and each inside it, is torch's own."""
    inner = (getattr(sampler, name, None) for name in _INNER)
    return type(sampler) in _KNOWN and all(
        item is None or isinstance(item, range | list | tuple) or _is_known(item) for item in inner
    )


def _copy_of(loader: Any) -> Any:
    own = copy.copy(loader)
    own.__dict__["_iterator"] = None  # persistent workers are not shared with the loader that was given
    return own


def _generator(seed: int, epoch: int) -> Any:
    return torch.Generator().manual_seed(derived_seed(seed, epoch, -1))


def _length(obj: Any) -> int | None:
    try:
        return len(obj)
    except TypeError:
        return None
