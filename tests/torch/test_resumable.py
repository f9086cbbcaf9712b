"""`Resumable`: position and order are a function of (seed, epoch, batches handed to the loop)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch.saving import put, save
from torch.utils import data

import safepoint
from safepoint.adapters import state_dict as opaque
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.integrations.resumable import Resumable


class Numbers(data.Dataset):
    """Item i is (i, a random number from each global generator); remembers what was loaded."""

    def __init__(self, count: int = 23, *, noisy: bool = False) -> None:
        self.count = count
        self.noisy = noisy
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        if not self.noisy:
            return index
        noise = [torch.rand(()).item(), random.random(), np.random.rand()]
        return torch.tensor([index, *noise], dtype=torch.float64)


class Stream(data.IterableDataset):
    """Shuffles and augments with the global generators; each worker reads its share."""

    def __init__(self, count: int = 23) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info()
        mine = list(range(self.count))[worker.id :: worker.num_workers] if worker else list(range(self.count))
        random.shuffle(mine)
        for number in mine:
            yield torch.tensor([number, torch.rand(()).item(), np.random.rand()], dtype=torch.float64)


class Again:
    """Any object that starts anew at each `for`."""

    def __iter__(self) -> Iterator[Any]:
        for _ in range(6):
            yield [random.random(), np.random.rand(), torch.rand(()).item()]


class GlobalSampler(data.Sampler):
    """Draws from a global generator, and has none of its own."""

    def __init__(self, count: int = 23) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.count).tolist()

    def __len__(self) -> int:
        return self.count


class PythonSampler(GlobalSampler):
    """Has a Python generator under a name of its own."""

    def __init__(self, count: int = 23) -> None:
        super().__init__(count)
        self.rng = random.Random(5)

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.sample(range(self.count), self.count)


class Endless(GlobalSampler):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield int(torch.randint(self.count, ()))

    __len__ = None  # type: ignore[assignment]


class Buckets(data.Sampler):
    """A batch sampler with a generator, as user code has them."""

    def __init__(self) -> None:
        self.generator: Any = None

    def __iter__(self) -> Iterator[list[int]]:
        for start in torch.randperm(5, generator=self.generator).tolist():
            yield [start * 4 + offset for offset in range(4)]

    def __len__(self) -> int:
        return 5


LOADERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: data.DataLoader(Numbers(), 4),
    "shuffled": lambda: data.DataLoader(Numbers(), 4, shuffle=True),
    "drop last": lambda: data.DataLoader(Numbers(), 4, shuffle=True, drop_last=True),
    "own generator": lambda: data.DataLoader(Numbers(), 4, shuffle=True, generator=torch.Generator()),
    "no batches": lambda: data.DataLoader(Numbers(), batch_size=None, sampler=data.RandomSampler(range(23))),
    "with replacement": lambda: data.DataLoader(Numbers(), 4, sampler=data.RandomSampler(range(23), True, 30)),
    "weighted": lambda: data.DataLoader(Numbers(), 4, sampler=data.WeightedRandomSampler([1.0] * 23, 20)),
    "subset": lambda: data.DataLoader(Numbers(), 4, sampler=data.SubsetRandomSampler(range(3, 20))),
    "distributed": lambda: data.DataLoader(Numbers(), 4, sampler=data.DistributedSampler(Numbers(), 2, 1)),
    "list of indices": lambda: data.DataLoader(Numbers(), 4, sampler=[5, 3, 1, 20, 22] * 3),  # type: ignore[arg-type]
    "list of batches": lambda: data.DataLoader(Numbers(), batch_sampler=[[5, 3], [1], [20, 22]]),  # type: ignore[arg-type]
    "custom sampler": lambda: data.DataLoader(Numbers(), 4, sampler=GlobalSampler()),
    "python sampler": lambda: data.DataLoader(Numbers(), 4, sampler=PythonSampler()),
    "custom batches": lambda: data.DataLoader(Numbers(), batch_sampler=Buckets()),
    "batches of a custom sampler": lambda: data.DataLoader(
        Numbers(), batch_sampler=data.BatchSampler(GlobalSampler(), 4, False)
    ),
    "stream": lambda: data.DataLoader(Stream(), 4),
    "stream without batches": lambda: data.DataLoader(Stream(), batch_size=None),
    "python object": Again,
    "list": lambda: [torch.full((2,), float(i)) for i in range(6)],
}
WORKERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: data.DataLoader(Numbers(noisy=True), 4, shuffle=True, num_workers=2),
    "persistent": lambda: data.DataLoader(
        Numbers(noisy=True), 4, shuffle=True, num_workers=2, persistent_workers=True, prefetch_factor=3
    ),
    "stream": lambda: data.DataLoader(Stream(), 4, num_workers=2),
    "persistent stream": lambda: data.DataLoader(Stream(), 4, num_workers=2, persistent_workers=True),
}


def flat(batch: Any) -> list[float]:
    return torch.as_tensor(batch, dtype=torch.float64).reshape(-1).tolist()


def epochs(loader: Any, count: int) -> list[Any]:
    return [(loader.epoch, [flat(batch) for batch in loader]) for _ in range(count)]


def check_exact(make: Callable[[], Any], stop: int) -> None:
    whole = epochs(Resumable(make(), seed=3), 3)
    assert len({str(batches) for _, batches in whole}) == 3 or whole[0][1] == whole[1][1]

    first = Resumable(make(), seed=3)
    seen = [[flat(batch) for batch in first]]
    loop = iter(first)
    seen.append([flat(next(loop)) for _ in range(stop)])
    state = first.state_dict()
    assert (state["epoch"], state["batch"]) == (1, stop)

    second = Resumable(make(), seed=99)
    random.seed(17)
    torch.manual_seed(17)
    second.load_state_dict(state)
    seen[1] += [flat(batch) for batch in second]
    assert second.epoch == 2
    seen.append([flat(batch) for batch in second])
    assert seen == [batches for _, batches in whole]


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_epoch_is_the_one_that_never_stopped(make: Any, stop: int) -> None:
    check_exact(make, stop)


@pytest.mark.parametrize("make", WORKERS.values(), ids=WORKERS)
def test_what_workers_prefetched_does_not_count(make: Any) -> None:
    check_exact(make, 2)


def test_the_epochs_of_a_shuffled_loader_differ() -> None:
    for name in ("shuffled", "custom sampler", "python sampler", "custom batches", "distributed", "stream"):
        (_, first), (_, second) = epochs(Resumable(LOADERS[name]()), 2)
        assert first != second


def test_seeds_decide_the_order() -> None:
    def order(seed: int) -> Any:
        return epochs(Resumable(LOADERS["shuffled"](), seed), 1)

    assert order(1) == order(1) != order(2)


def test_an_epoch_has_every_sample_once() -> None:
    for name in ("plain", "shuffled", "custom sampler", "stream"):
        ((_, batches),) = epochs(Resumable(LOADERS[name]()), 1)
        first = [batch[:: 3 if name == "stream" else 1] for batch in batches]
        assert sorted(int(x) for batch in first for x in batch) == list(range(23))


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "distributed"])
def test_iterating_leaves_the_global_generators_alone(name: str) -> None:
    loader = Resumable(LOADERS[name]())
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for number, _ in enumerate(loader):
        if number == 2:
            break
    loader.load_state_dict(loader.state_dict())
    list(loader)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_batches_that_were_handed_out_are_not_loaded_again() -> None:
    dataset = Numbers()
    loader = Resumable(data.DataLoader(dataset, 4, shuffle=True))
    loop = iter(loader)
    for _ in range(4):
        next(loop)
    resumed = Resumable(data.DataLoader(dataset, 4, shuffle=True))
    resumed.load_state_dict(loader.state_dict())
    dataset.loaded.clear()
    rest = [index for batch in resumed for index in flat(batch)]
    assert len(rest) == 7
    assert dataset.loaded == rest


def test_the_loader_that_was_given_is_left_alone() -> None:
    generator = torch.Generator()
    loader = data.DataLoader(Numbers(), 4, shuffle=True, generator=generator)
    state, kept = generator.get_state(), dict(vars(loader))
    list(Resumable(loader))
    assert torch.equal(generator.get_state(), state)
    assert vars(loader) == kept


def test_a_loop_that_was_left_is_gone_on_with() -> None:
    loader = Resumable(LOADERS["shuffled"](), 3)
    seen = []
    for batch in loader:
        seen.append(flat(batch))
        if len(seen) == 2:
            break
    seen += [flat(batch) for batch in loader]
    assert seen == epochs(Resumable(LOADERS["shuffled"](), 3), 1)[0][1]


def test_after_the_last_batch_an_epoch_is_not_over_until_the_loop_asks() -> None:
    loader = Resumable(LOADERS["plain"]())
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 6)
    assert (loader.epoch, loader.batch) == (1, 0)
    resumed = Resumable(LOADERS["plain"]())
    resumed.load_state_dict(state)
    assert list(resumed) == []
    assert (resumed.epoch, resumed.batch) == (1, 0)


def test_a_running_loop_follows_a_loaded_position() -> None:
    loader = Resumable(LOADERS["plain"]())
    start = loader.state_dict()
    seen = []
    for batch in loader:
        seen.append(flat(batch)[0])
        if len(seen) == 3:
            loader.load_state_dict(start)
    assert seen == [0, 4, 8, 0, 4, 8, 12, 16, 20]
    assert loader.epoch == 1


def test_two_loops_at_once_are_refused() -> None:
    loader = Resumable(LOADERS["plain"]())
    with pytest.raises(UnsupportedError, match="two loops"):
        list(zip(loader, loader, strict=True))


def test_length_is_that_of_a_whole_epoch() -> None:
    loader = Resumable(LOADERS["plain"]())
    next(iter(loader))
    assert len(loader) == 6
    with pytest.raises(TypeError):
        len(Resumable(LOADERS["stream"]()))


def test_other_data_or_batches_are_refused() -> None:
    state = Resumable(data.DataLoader(Numbers(), 4)).state_dict()
    for other, key in ((data.DataLoader(Numbers(24), 4), "samples"), (data.DataLoader(Numbers(), 5), "batch_size")):
        loader = Resumable(other)
        with pytest.raises(MismatchError, match="nothing was changed") as caught:
            loader.load_state_dict({**state, "batch": 3})
        assert key in caught.value.differs
        assert loader.batch == 0
    stream = Resumable(data.DataLoader(Stream(), 4, num_workers=2))
    with pytest.raises(MismatchError, match="workers"):
        stream.load_state_dict(Resumable(data.DataLoader(Stream(), 4)).state_dict())


def test_a_strange_state_is_refused() -> None:
    with pytest.raises(MismatchError, match="lacks epoch"):
        Resumable([1, 2]).load_state_dict({"position": 3})


def test_data_that_became_shorter_is_noticed() -> None:
    loader = Resumable(LOADERS["stream"]())
    loop = iter(loader)
    for _ in range(5):
        next(loop)
    shorter = Resumable(data.DataLoader(Stream(9), 4))
    shorter.load_state_dict(loader.state_dict())
    with pytest.raises(MismatchError, match="ended after 3 batches"):
        next(iter(shorter))


class Counting(GlobalSampler):
    """Another order at each reading, from a count that nobody can set."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def __iter__(self) -> Iterator[int]:
        self.readings += 1
        yield from torch.randperm(self.count, generator=torch.Generator().manual_seed(self.readings)).tolist()


REFUSED = {
    "an iterator": (lambda: iter([1, 2]), "read only once"),
    "a generator": (lambda: (i for i in range(3)), "read only once"),
    "a number": (lambda: 3, "cannot be iterated"),
    "a dataset": (Numbers, "not a loader"),
    "out of order": (lambda: data.DataLoader(Numbers(), num_workers=1, in_order=False), "in_order"),
    "a counting sampler": (lambda: data.DataLoader(Numbers(), sampler=Counting()), "Counting"),
    "an iterator of indices": (lambda: data.DataLoader(Numbers(), sampler=iter([1, 2])), "only once"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_an_order_that_cannot_be_controlled_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Resumable(make())


def test_a_sampler_without_end_goes_on() -> None:
    def make() -> Any:
        return Resumable(data.DataLoader(Numbers(), 4, sampler=Endless()), 3)  # type: ignore[arg-type]

    whole = [flat(batch) for batch, _ in zip(make(), range(6), strict=False)]
    first, second = make(), make()
    part = [flat(batch) for batch, _ in zip(first, range(2), strict=False)]
    state = first.state_dict()
    assert state["batch"] == 3  # zip took one more
    second.load_state_dict({**state, "batch": 2})
    assert part + [flat(batch) for batch, _ in zip(second, range(4), strict=False)] == whole


def test_a_dataset_is_told_the_epoch() -> None:
    class Told(Stream):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    dataset = Told()
    loader = Resumable(data.DataLoader(dataset, 4))
    list(loader)
    next(iter(loader))
    assert dataset.epoch == 1


def test_worker_init_functions_and_worker_info_stay_the_users() -> None:
    class Asking(Numbers):
        def __getitem__(self, index: int) -> Any:
            info = data.get_worker_info()
            return float(info.dataset is self and self.count == 77)

    def init(worker: int) -> None:
        data.get_worker_info().dataset.count = 77

    loader = data.DataLoader(Asking(8), 4, num_workers=1, worker_init_fn=init)
    assert [flat(batch) for batch in Resumable(loader)] == [[1.0] * 4] * 2


def test_state_is_values_and_goes_through_the_adapter() -> None:
    loader = Resumable(LOADERS["shuffled"]())
    next(iter(loader))
    saved = save(loader)
    assert opaque.handles(loader)
    assert dict(saved.leaves) == {
        "epoch": 0, "batch": 1, "seed": 0, "samples": 23, "batches": 6, "batch_size": 4, "workers": None,
        "order": "BatchSampler/RandomSampler",
    }  # fmt: skip
    other = Resumable(LOADERS["shuffled"](), 8)
    put(saved, other)
    assert (other.batch, other.seed) == (1, 0)


def test_no_framework_is_imported_for_a_list() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from safepoint.integrations.resumable import Resumable; list(Resumable([1])); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_order_of_an_epoch_never_changes() -> None:
    """Pinned: a snapshot of today must resume with the library of tomorrow."""
    loader = Resumable(data.DataLoader(Numbers(10), 5, shuffle=True), seed=7)
    assert [[flat(batch) for batch in loader] for _ in range(2)] == [
        [[6, 7, 3, 4, 1], [9, 8, 0, 2, 5]],
        [[8, 9, 1, 6, 7], [4, 2, 0, 3, 5]],
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"batch": -1}, {"batch": 7}, {"batch": 2.5}, {"batch": True}, {"epoch": "x"}, {"epoch": -1}, {"seed": None}],
    ids=str,
)
def test_a_position_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    loader = Resumable(LOADERS["shuffled"](), 5)
    with pytest.raises(MismatchError, match="nothing was changed"):
        loader.load_state_dict({**loader.state_dict(), **wrong})
    assert (loader.epoch, loader.batch, loader.seed) == (0, 0, 5)
    with pytest.raises(TypeError, match="whole number"):
        Resumable([1], seed="a")  # type: ignore[arg-type]


def test_another_sampler_is_another_order() -> None:
    state = Resumable(data.DataLoader(Numbers(), 4, shuffle=True)).state_dict()
    assert state["order"] == "BatchSampler/RandomSampler"
    straight = Resumable(data.DataLoader(Numbers(), 4))
    with pytest.raises(MismatchError, match="order: live BatchSampler/SequentialSampler, saved BatchSampler/Random"):
        straight.load_state_dict(state)
    del state["order"]  # version 0.1 did not keep it
    straight.load_state_dict(state)


class Slow(Numbers):
    """The first items of a batch take longest, so workers finish in another order than they were asked in."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.03 if index % 8 < 4 else 0)
        return super().__getitem__(index)


class Sliced(Numbers):
    """Loads a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


MORE_WORKERS: dict[str, Callable[[], Any]] = {
    "slow": lambda: data.DataLoader(Slow(noisy=True), 4, num_workers=2, prefetch_factor=4),
    "batches at once": lambda: data.DataLoader(Sliced(noisy=True), 4, shuffle=True, num_workers=1),
    "batch sampler": lambda: data.DataLoader(
        Numbers(noisy=True), batch_sampler=data.BatchSampler(data.RandomSampler(range(23)), 4, True), num_workers=1
    ),
    "weighted": lambda: data.DataLoader(
        Numbers(noisy=True),
        4,
        sampler=data.WeightedRandomSampler([0.1] * 23, 23, generator=torch.Generator().manual_seed(5)),
        num_workers=1,
    ),
    "distributed": lambda: data.DataLoader(
        Numbers(noisy=True), 4, sampler=data.DistributedSampler(Numbers(), 2, 1, drop_last=True), num_workers=1
    ),
    "chained streams": lambda: data.DataLoader(data.ChainDataset([Stream(), Stream(9)]), 4, num_workers=2),
}


@pytest.mark.parametrize("make", MORE_WORKERS.values(), ids=MORE_WORKERS)
def test_workers_hand_out_the_same_batches_in_the_same_order_after_a_resume(make: Any) -> None:
    check_exact(make, 2)


def test_how_workers_are_started_does_not_matter() -> None:
    """Spawned workers import everything anew; a run may be resumed on another system than it was started on."""

    def make(method: str) -> Any:
        loader = data.DataLoader(Numbers(noisy=True), 4, shuffle=True, num_workers=1, multiprocessing_context=method)
        return Resumable(loader, seed=3)

    ((_, whole),) = epochs(make("fork"), 1)
    first = make("fork")
    part = [flat(batch) for batch, _ in zip(first, range(2), strict=False)]
    second = make("spawn")
    second.load_state_dict({**first.state_dict(), "batch": 2})
    assert part + [flat(batch) for batch in second] == whole


class Failing(Numbers):
    def __getitem__(self, index: int) -> Any:
        if index == 13 and not self.loaded:
            raise OSError("the network is away")
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_failed_was_not_handed_out(workers: int) -> None:
    dataset = Failing()
    loader = Resumable(data.DataLoader(dataset, 4, num_workers=workers))
    loop = iter(loader)
    for _ in range(3):
        next(loop)
    with pytest.raises(OSError, match="network"):
        next(loop)
    assert loader.batch == 3
    dataset.loaded.append(0)  # it is back
    assert next(flat(batch) for batch in loader) == [12, 13, 14, 15]


def test_skipping_by_index_takes_no_time() -> None:
    """A third of a minute of loading, had the batches been loaded: ten million samples, skipped in their order."""
    loader = Resumable(data.DataLoader(range(10_000_000), 1000))  # type: ignore[arg-type]
    loader.load_state_dict({**loader.state_dict(), "batch": 9_000})
    started = time.perf_counter()
    assert flat(next(iter(loader)))[0] == 9_000_000
    assert time.perf_counter() - started < 5


class Stateful(data.DataLoader):  # type: ignore[type-arg]
    """What torchdata's StatefulDataLoader is to its user: a loader that keeps its own position."""

    handed = 0

    def __iter__(self) -> Any:
        for number, batch in enumerate(super().__iter__()):
            if number >= self.handed:
                self.handed = number + 1
                yield batch
        self.handed = 0

    def state_dict(self) -> dict[str, Any]:
        return {"_snapshot": {"_snapshot_step": self.handed, "worker": None}, "generator": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.handed = state["_snapshot"]["_snapshot_step"]


def test_a_loader_that_keeps_its_own_position_is_tracked_itself(tmp_path: Path) -> None:
    loader = Stateful(Numbers(), 4)
    loop = iter(loader)
    for _ in range(4):
        next(loop)
    safepoint.Checkpoint(loader=loader).save(tmp_path)
    again = Stateful(Numbers(), 4)
    safepoint.Checkpoint(loader=again).restore(tmp_path)
    assert [flat(batch) for batch in again] == [[16, 17, 18, 19], [20, 21, 22]]
    with pytest.raises(UnsupportedError, match="keeps its own position"):
        Resumable(again)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_data_pipes_are_refused() -> None:
    from torch.utils.data.datapipes.iter import IterableWrapper

    pipe = IterableWrapper(range(10))
    for loader in (pipe, data.DataLoader(pipe, 4)):
        with pytest.raises(UnsupportedError):
            Resumable(loader)
