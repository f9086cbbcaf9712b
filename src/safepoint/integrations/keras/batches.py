"""The batches of a running `fit`: counted, begun in the middle of an epoch, and looked at between any two.

Two things are told apart. An *epoch* is what `fit` calls one. A *pass* is one reading of the data, by one iterator:
with `steps_per_epoch` it lasts for several epochs. A resumed run makes the iterator of the interrupted pass anew, from
the random state that it was begun in, and skips what was taken from it.

Invariant: the trainer's own loop runs, over the trainer's own iterators; nothing is done twice, nothing left out.
Source: `keras.src.trainers.epoch_iterator.EpochIterator`, whose two private methods are replaced on the one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from safepoint.integrations.keras import randomness
from safepoint.integrations.keras.data import Data


@final
class Batches:
    """Where a `fit` is in its data.

    Attributes:
        epoch_batches: batches of the current epoch that are done.
        total: batches that are done in all.
        leave: set it to end the epoch before its next batch.
    """

    def __init__(self, epochs: Any, data: Data, between: Callable[[], None], settle: Callable[[], None]) -> None:
        """Take over the iterator of a `fit` that begins.

        Args:
            epochs: the `EpochIterator`.
            data: what it reads.
            between: called when the trainer asks for the next batch of an epoch: what came before is done.
            settle: called in the interrupted epoch when Keras has begun it, before data is read.
        """
        self._epochs = epochs
        self._data = data
        self._between = between
        self._settle = settle
        self._enumerate: Callable[[], Iterator[tuple[int, int, Any]]] = epochs._enumerate_iterator
        self.epoch_batches = 0
        self.total = 0
        self.leave = False
        self._items: Any = None  # the current pass
        self._handed = 0  # batches given to the trainer that it may not have done yet
        self._skip = 0  # batches of the epoch that begins which were done before
        self._taken = 0  # batches taken from the current pass
        self._before = 0  # batches of the resumed pass that epochs before this one took
        self._begun = 0  # passes begun
        self._is_begun = False  # whether the current one is among them
        self._place: Mapping[str, Any] | None = None  # of the pass to go on in
        self._random: dict[str, Any] = {}  # the state in which the current pass was begun, and drew its first
        epochs._enumerate_iterator = self._epoch
        epochs._get_iterator = data.opening(epochs._get_iterator, self._open)

    @property
    def size(self) -> int | None:
        """Batches of a whole epoch, as far as that is known before it ends."""
        known = self._epochs.steps_per_epoch or self._epochs.data_adapter.num_batches
        return None if known is None else int(known)

    def state(self) -> dict[str, Any]:
        """Where the next batch comes from."""
        kept = self._epochs.steps_per_epoch is not None and self._epochs._current_iterator is not None
        inside = self._taken > 0 or kept
        return {
            "epoch_batches": self.epoch_batches,
            "total": self.total,
            "size": self.size,
            "taken": self._taken,
            "passes": self._begun - (1 if self._is_begun and inside else 0),
            "random": dict(self._random) if inside else {},
            "data": self._data.state(),
        }

    def go_on(self, state: Mapping[str, Any]) -> str | None:
        """Begin the next epoch where a saved state was; what is in doubt about it, in words, or None."""
        self.total, self.epoch_batches = int(state["total"]), int(state["epoch_batches"])
        self._skip, self._place = self.epoch_batches, state
        return self._data.go_on(state["data"])

    def is_over(self) -> bool:
        """Whether no batch follows in this epoch. Data of unknown length is asked; that of TensorFlow cannot be."""
        known, size = self._epochs.data_adapter.num_batches, self.size
        if size is not None:
            return self.epoch_batches >= size or (known is not None and self._taken >= known)
        return bool(getattr(self._items, "is_empty", lambda: False)())

    def end_epoch(self, *, stopped: bool) -> None:
        """The trainer's loop over an epoch is over: because all was done, because it was stopped, or data ran out."""
        if stopped:
            self._count()
        self._handed = self.epoch_batches = 0
        if self._epochs.steps_per_epoch is None or self._epochs._current_iterator is None:
            self._taken, self._is_begun = 0, False  # the next epoch begins a pass

    def _epoch(self) -> Iterator[tuple[int, int, Any]]:
        skip, self._skip = self._skip, 0
        self.epoch_batches = skip
        for begin, end, items in self._enumerate():
            if end < skip:
                continue
            self._epochs._steps_seen += self._before
            self._before = 0
            self._handed, self._items = self._step_size(), items
            yield begin, end, items
            self._count()
            self._between()
            if self.leave:
                return

    def _count(self) -> None:
        handed, self._handed = self._handed, 0
        self.epoch_batches += handed
        self.total += handed
        self._taken += handed

    def _step_size(self) -> int:
        """Batches in the execution that comes next: the last of a pass may have fewer."""
        size, known = int(self._epochs.steps_per_execution), self._epochs.data_adapter.num_batches
        return size if known is None else max(min(size, int(known) - self._taken), 0)

    def _open(self, make: Callable[[int], Any]) -> Any:
        """Begin a pass: `make(skip)` gives its iterator, without its first `skip` batches if the data can do that."""
        place, self._place = self._place, None
        if place is not None:
            if self.epoch_batches:
                self._settle()
            self._begun = int(place["passes"])
            self._data.replay(self._begun)
            if place["random"]:
                return self._reopen(int(place["taken"]), place["random"], make)
        self._taken, self._is_begun = 0, False
        self._random = {"opened": randomness.captured()}
        return self._data.watch(make(0), self._begin)

    def _reopen(self, taken: int, random: Mapping[str, Any], make: Callable[[int], Any]) -> Any:
        """Begin the interrupted pass from the state it was begun in; what the program draws next is as before."""
        self._taken, self._random, self._is_begun = taken, dict(random), taken > 0
        self._before = taken - self.epoch_batches
        now = randomness.captured()
        randomness.restore(self._random["opened"])
        items = make(taken)
        if taken and "first" in self._random:
            randomness.restore(self._random["first"])
        items = self._data.skipped(items, taken)
        randomness.restore(now)
        if not taken:
            return self._data.watch(items, self._begin)
        self._begun += 1
        return self._data.watch(items, None)

    def _begin(self, *, lazily: bool) -> None:
        """The current pass draws its first batch."""
        self._begun, self._is_begun = self._begun + 1, True
        if lazily:
            self._random["first"] = randomness.captured()
