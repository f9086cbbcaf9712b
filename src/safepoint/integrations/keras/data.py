"""What `fit` reads: how its batches are begun again, skipped unloaded where that can be done, and what is in doubt.

Invariant: nothing is claimed to be exact of which the order hangs on something that cannot be seen here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, final

from safepoint.adapters import random_states
from safepoint.api.announce import announce
from safepoint.integrations.seeding import derived_seed


@final
class Data:
    """The data of one `fit`, by what Keras' own adapter knows of it."""

    def __init__(self, epochs: Any) -> None:
        self._adapter = epochs.data_adapter
        self._kind = type(self._adapter).__name__
        self._on_tensorflow = hasattr(epochs, "_distributed_dataset")
        self._strategy: Any = getattr(epochs, "_distribute_strategy", None)
        self._passes = 0
        # TensorFlow shuffles arrays by operations with a seed from the program's; without one they have none to keep.
        own = self._on_tensorflow and self._kind == "ArrayDataAdapter" and bool(self._adapter._shuffle)
        self._order_seed = int.from_bytes(os.urandom(7), "little") if own and _tensorflow_seed() is None else None
        self._program_seed = _tensorflow_seed() if own else None

    @property
    def objects(self) -> list[Any]:
        """The user's own object, whose attributes may be state (the order that its `on_epoch_end` shuffles)."""
        return [self._adapter.py_dataset] if self._kind == "PyDatasetAdapter" else []

    def state(self) -> dict[str, Any]:
        """What the order hangs on, beside random state."""
        return {"kind": self._kind, "order_seed": self._order_seed, "program_seed": self._program_seed}

    def go_on(self, state: dict[str, Any]) -> str | None:
        """Take over the order of the interrupted run; what is in doubt about it, in words, or None."""
        if state["kind"] != self._kind:
            return "other data is given than in the interrupted run"
        if state["order_seed"] is not None and self._order_seed is None:
            return "the program now sets a seed, which it did not in the interrupted run"
        if state["program_seed"] != self._program_seed:
            return "the program sets another seed (keras.utils.set_random_seed) than in the interrupted run"
        self._order_seed = state["order_seed"]
        return self._doubt()

    def opening(self, get: Callable[[], Any], start: Callable[[Callable[[int], Any]], Any]) -> Callable[[], Any]:
        """What takes the place of `EpochIterator._get_iterator`: its `iter` calls `start(make)`."""

        def make(skip: int) -> Any:
            self._passes += 1
            items = get() if self._order_seed is None else self._seeded(derived_seed(self._order_seed, self._passes))
            return iter(items.skip(skip) if skip and self._skips_itself() else items)

        return lambda: _Opening(lambda: start(make))

    def replay(self, passes: int) -> None:
        """Be where `passes` passes have been begun before."""
        if self._kind == "TFDatasetAdapter" and _shuffles(self._adapter._dataset):
            for _ in range(passes):  # each iterator takes the next seed; nothing is read
                iter(self._adapter._dataset)
        self._passes = passes

    def skipped(self, items: Any, count: int) -> Any:
        """`items` without its first `count` batches."""
        if self._skips_itself():
            return items
        number = _skip_indices(items, count)
        for _ in islice(items, count - number):
            number += 1
        if number < count:
            announce(f"the data ended after {number} batches, and {count} were taken before the kill", warning=True)
        return items

    def watch(self, items: Any, begin: Callable[..., None] | None) -> Any:
        """`items`, with `begin` called as its first batch is drawn: at once where that is done by TensorFlow."""
        if not self._on_tensorflow:
            return _Watched(items, begin)
        if begin is not None:
            begin(lazily=False)
        return items

    def _skips_itself(self) -> bool:
        return (
            self._on_tensorflow and self._kind in {"ArrayDataAdapter", "TFDatasetAdapter"} and not self._distributed()
        )

    def _distributed(self) -> bool:
        return getattr(self._strategy, "num_replicas_in_sync", 1) != 1

    def _seeded(self, seed: int) -> Any:
        """Keras' own pipeline, shuffled from `seed`."""
        tensorflow = random_states()["tensorflow"]
        before = tensorflow.capture()
        import tensorflow as tf

        try:
            tf.random.set_seed(seed)
            dataset = self._adapter.get_tf_dataset()
        finally:
            tensorflow.restore(before)
        return self._strategy.experimental_distribute_dataset(dataset)

    def _doubt(self) -> str | None:
        if self._kind == "GeneratorDataAdapter":
            return "the data is a generator: it is read anew up to the place, and may give other batches than before"
        if self._kind == "TFDatasetAdapter":
            return _doubt_of_dataset(self._adapter._dataset)
        if self._kind not in {"ArrayDataAdapter", "PyDatasetAdapter", "TorchDataLoaderAdapter", "GrainDatasetAdapter"}:
            return f"nothing is known of the order in {self._kind}"
        return None


@final
class _Opening:
    """An iterable whose `iter` is a call."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start

    def __iter__(self) -> Any:
        return self._start()


@final
class _Watched:
    """An iterator that says when its first item is drawn, and whether it is at its end."""

    def __init__(self, items: Iterator[Any], begin: Callable[..., None] | None) -> None:
        self._items = items
        self._begin = begin
        self._ahead: list[Any] = []

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Any:
        if self._ahead:
            return self._ahead.pop()
        begin, self._begin = self._begin, None
        if begin is not None:
            begin(lazily=True)
        return next(self._items)

    def is_empty(self) -> bool:
        """Whether nothing follows; draws one item ahead to know."""
        if not self._ahead:
            self._ahead.extend(islice(self._items, 1))
        return not self._ahead


def _tensorflow_seed() -> int | None:
    state = random_states().get("tensorflow")
    seed = None if state is None else state.capture().leaves["seed"]
    return seed if isinstance(seed, int) else None


def _skip_indices(items: Any, count: int) -> int:
    """Let batches of a torch loader go by their indices, without loading them; how many that were."""
    sampler, loads_itself = getattr(items, "_sampler_iter", None), getattr(items, "_num_workers", None) == 0
    if sampler is None or not loads_itself or not hasattr(items, "_next_index"):
        return 0
    if "Iterable" in type(getattr(items, "_dataset_fetcher", items)).__name__:
        return 0
    for _ in islice(sampler, count):
        items._num_yielded += 1
    return int(items._num_yielded)


def _inside(dataset: Any) -> Iterator[Any]:
    yield dataset
    for source in getattr(dataset, "_inputs", tuple)():
        yield from _inside(source)


def _shuffles(dataset: Any) -> bool:
    return any(getattr(part, "_reshuffle_each_iteration", False) for part in _inside(dataset))


def _doubt_of_dataset(dataset: Any) -> str | None:
    for part in _inside(dataset):
        seeds = (getattr(part, "_seed", None), getattr(part, "_seed2", None))
        if None not in seeds and not any(int(seed) for seed in seeds if seed is not None):
            return "the tf.data pipeline shuffles without a seed: set shuffle(seed=), or a seed before it is made"
    options = dataset.options() if hasattr(dataset, "options") else None
    if options is not None and options.deterministic is False:
        return "the tf.data pipeline gives batches in the order in which they happen to be ready (deterministic=False)"
    return None
