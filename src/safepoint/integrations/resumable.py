"""`Resumable`: a loader whose position and order are a function of (seed, epoch, batches handed to the loop).

Invariant: what workers have prefetched does not count; iterating draws nothing from the global random generators,
except what a map-style dataset without workers draws itself (that state is the program's, saved beside this one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, final

from safepoint.errors import MismatchError, UnsupportedError
from safepoint.integrations.seeding import derived_seed, isolated

_POSITION = ("epoch", "batch", "seed")


@final
class Resumable:
    """A loader that goes on exactly where it was: iterate it in the place of `loader`, and track it.

    `loader` is a `torch.utils.data.DataLoader` (map-style or iterable, with or without workers) or any object that
    `iter` reads from the start again and again. `for batch in resumable` goes on at (`epoch`, `batch`), to the end of
    that epoch, also after a `break` and after `load_state_dict`, which a running loop follows.

    Shuffling uses generators seeded from (seed, epoch) in the place of the loader's own; `loader` itself is left
    alone. Random numbers that a dataset draws from Python's, NumPy's and torch's global generators are reseeded for
    each batch in workers; a generator that the dataset keeps for itself is beyond reach. Map-style batches that were
    handed out are skipped by index, without loading; all others are read and dropped.

    Attributes:
        loader: what was given.
        seed: of the order; a loaded state brings its own.
        epoch: counted from 0; grows when the loop asks for more than the epoch has.
        batch: batches of this epoch handed to the loop.
    """

    per_rank = True
    """Processes that train one model together read different parts of the data: each keeps its own position."""

    def __init__(self, loader: Any, seed: int = 0) -> None:
        """Check that the order of `loader` can be controlled.

        Raises:
            TypeError: the seed is no whole number.
            UnsupportedError: it cannot: an iterator that is read once, `in_order=False`, a sampler with hidden state.
        """
        if type(seed) is not int:
            raise TypeError(f"Resumable(loader, seed=...) needs a whole number, not {seed!r}")
        self.loader = loader
        self.seed = seed
        self.epoch = 0
        self.batch = 0
        self._moved = 0  # how often a position was loaded: running loops look at it
        self._reader: object = None  # the loop that reads; an older one must not count too
        self._source = _source(loader)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current epoch."""
        mine = self._reader = object()
        while True:
            moved, epoch = self._moved, self.epoch
            for item in self._source.read(self.seed, epoch, self.batch):
                self.batch += 1
                yield item
                self._check_reader(mine)
                if self._moved != moved:
                    break
            else:
                self.epoch, self.batch = epoch + 1, 0
                return

    def __len__(self) -> int:
        """Batches in a whole epoch.

        Raises:
            TypeError: the loader has no length.
        """
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "batch": self.batch, "seed": self.seed, **self._source.shape()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved position, with the seed it was reached with.

        Raises:
            MismatchError: it is the position in other data, or in other batches; nothing was changed.
        """
        missing = [key for key in _POSITION if key not in state]
        if missing:
            raise MismatchError(f"this is no state of a Resumable: it lacks {', '.join(missing)}", missing=missing)
        shape = self._source.shape()
        # A key that the snapshot does not have was not kept by the version that wrote it.
        differs: dict[str, tuple[object, object]] = {
            key: (live, state[key]) for key, live in shape.items() if key in state and live != state[key]
        }
        if differs:
            found = ", ".join(f"{key}: live {live}, saved {saved}" for key, (live, saved) in differs.items())
            raise MismatchError(
                f"the saved position is one in other data or other batches; nothing was changed ({found})",
                differs=differs,
                hint="give the loader the dataset and batch size it had, or start the epoch over with a new Resumable",
            )
        epoch, batch, seed = (state[key] for key in _POSITION)
        last = shape["batches"] if type(shape["batches"]) is int else batch
        if not all(type(number) is int for number in (epoch, batch, seed)) or epoch < 0 or not 0 <= batch <= last:
            raise MismatchError(
                "the saved position is none; nothing was changed",
                expected="an epoch from 0, a batch of it, and a seed, all whole numbers",
                found=f"epoch {epoch!r}, batch {batch!r}, seed {seed!r}",
            )
        self.epoch, self.batch, self.seed = epoch, batch, seed
        self._moved += 1

    def __repr__(self) -> str:
        return f"Resumable({self.loader!r}, seed={self.seed}, epoch={self.epoch}, batch={self.batch})"

    def _check_reader(self, mine: object) -> None:
        if self._reader is not mine:
            raise UnsupportedError(
                "two loops read one Resumable at once: its position would be of neither",
                hint="wrap the loader a second time",
            )


class _Objects:
    """Any object that can be read again and again, under random generators of its own."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def read(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The items of an epoch from number `skip` on."""
        if type(self.loader) in {list, tuple, range}:  # they draw nothing, and exchanging generators takes 0.2 ms
            yield from islice(self.loader, skip, None)
            return
        items = isolated(lambda: iter(self.loader), derived_seed(seed, epoch))
        for number in range(skip):
            if next(items, self) is self:
                raise MismatchError(
                    f"the data ended after {number} batches", expected=f"more than the {skip} handed out before"
                )
        yield from items

    def shape(self) -> dict[str, int | str | None]:
        """What a position depends on."""
        count = len(self.loader) if hasattr(self.loader, "__len__") else None
        return {"samples": None, "batches": count, "batch_size": None, "workers": None, "order": None}


def _source(loader: Any) -> Any:
    if _is_dataloader(loader):
        from safepoint.integrations.loading import source_of

        return source_of(loader)
    if type(loader).__module__.startswith("tensorflow."):
        raise UnsupportedError(
            "TensorFlow shuffles with random numbers of its own", hint="track the iterator itself: iter(dataset)"
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise UnsupportedError(f"{type(loader).__name__} cannot be iterated", expected="a loader of batches")
    if hasattr(loader, "__next__"):
        raise UnsupportedError(
            f"{type(loader).__name__} is an iterator: it is read only once, so a second run cannot go on in it",
            expected="an object that starts anew at each `for`",
            hint="wrap what it was made from, or give it state_dict() and load_state_dict() and track it itself",
        )
    return _Objects(loader)


def _is_dataloader(loader: Any) -> bool:
    """Whether it is torch's, without importing torch to ask."""
    return any(base.__module__.startswith("torch.utils.data") for base in type(loader).__mro__[:-1])
