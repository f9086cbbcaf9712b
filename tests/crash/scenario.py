"""A life of a repository in a dozen steps, and what must hold wherever it is cut short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from safepoint.errors import NotFoundError, UntrustedError
from safepoint.repository import Repository, Snapshot
from safepoint.repository.survey import survey
from safepoint.store import Store
from safepoint.tree import StateTree, Tensor

Content = dict[str, Any]


class KeepLast:
    def __init__(self, count: int) -> None:
        self.count = count

    def keep(self, history: Sequence[Snapshot], now: datetime) -> set[int]:
        return {snapshot.number for snapshot in history[-self.count :]}


def content_of(step: int, *, size: int = 300) -> Content:
    """The state after a step: something that never changes, something that always does, values, an empty tensor."""
    rng = np.random.default_rng(step)
    return {
        "model/frozen": np.arange(size, dtype=np.float32),
        "model/w": rng.standard_normal((5, 7)),
        "model/b": rng.integers(0, 255, 3 + step, dtype=np.uint8),
        "model/empty": np.zeros((0, 3), np.int16),
        "step": step,
        "note": f"after step {step}",
        "text": "long " * 20_000 + str(step // 2),
    }


def tree_of(content: Content) -> StateTree:
    return StateTree({n: Tensor.of(x) if isinstance(x, np.ndarray) else x for n, x in content.items()})


def check_content(repository: Repository, snapshot: Snapshot, content: Content) -> None:
    with repository.reading():
        manifest = repository.manifest(snapshot)
        leaves = manifest.load(content, verify="full").leaves
    assert list(leaves) == list(manifest.tree.leaves)
    assert set(leaves) == set(content)
    for name, expected in content.items():
        found = leaves[name]
        if isinstance(expected, np.ndarray):
            array = found.numpy()
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
            assert array.tobytes() == expected.tobytes(), name
        else:
            assert type(found) is type(expected)
            assert found == expected, name


@dataclass
class Known:
    """What the outside world was told: contents by number, and what is allowed to have happened beyond it."""

    content: dict[int, Content] = field(default_factory=dict)
    tags: dict[int, set[str]] = field(default_factory=dict)
    signed: dict[int, bytes] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)
    maybe_pruned: set[int] = field(default_factory=set)
    attempted: Content | None = None


Step = Callable[[Repository, Known], None]


def save(step: int, **options: Any) -> Step:
    def run(repository: Repository, known: Known) -> None:
        known.attempted = content_of(step)
        snapshot = repository.commit(tree_of(known.attempted), step=step, metrics={"loss": 1.0 / (1 + step)}, **options)
        known.content[snapshot.number] = known.attempted
        known.tags[snapshot.number] = set(options.get("tags", ()))
        known.attempted = None

    return run


def tag(reference: str, name: str) -> Step:
    def run(repository: Repository, known: Known) -> None:
        try:
            number = repository.tag(reference, name).number
        except NotFoundError:  # in a world where its save was refused
            return
        known.tags.setdefault(number, set()).add(name)

    return run


def add_metrics(repository: Repository, known: Known) -> None:
    repository.add_metrics("latest", {"accuracy": 0.5})


def prune(count: int) -> Step:
    def run(repository: Repository, known: Known) -> None:
        policy = [KeepLast(count)]
        known.maybe_pruned |= {snapshot.number for snapshot in repository.prune(policy)}
        known.pruned |= {snapshot.number for snapshot in repository.prune(policy, dry_run=False)}

    return run


def delete_oldest(repository: Repository, known: Known) -> None:
    candidates = [s for s in repository.snapshots if not s.tags][:1]
    for snapshot in candidates:
        known.maybe_pruned.add(snapshot.number)
        repository.delete(f"id:{snapshot.number}")
        known.pruned.add(snapshot.number)


def collect(repository: Repository, known: Known) -> None:
    repository.collect()


def verify(repository: Repository, known: Known) -> None:
    repository.verify()


LIFE: list[Step] = [
    save(0), save(1), tag("latest", "kept"), save(2), add_metrics, save(3, tags=["best-so-far"]), prune(2), collect,
    save(4), save(5), delete_oldest, collect, verify, save(6),
]  # fmt: skip


def live(store: Store, steps: Sequence[Step], *, after_error: type[Exception] | None = None) -> Known:
    """Run the steps; with `after_error` go on after such errors, as a training loop that logs them would."""
    known = Known()
    repository = Repository(store)
    try:
        for step in steps:
            try:
                step(repository, known)
            except Exception as error:
                if after_error is None or not isinstance(error, after_error):
                    raise
    except BaseException as death:
        if isinstance(death, Exception):
            raise
    return known


def check_survival(store: Store, known: Known) -> None:
    """Open it anew: the old history or the old history plus one, every content exact, and life goes on."""
    repository = Repository(store)
    if repository.exists:
        snapshots, damaged = repository.history()
        assert damaged == {}
        assert list(snapshots) == list(range(len(snapshots)))
        extra = snapshots.keys() - known.content.keys()
        assert known.content.keys() <= snapshots.keys()
        check_all(repository, snapshots, known)
        if known.attempted is not None and extra == {len(snapshots) - 1}:
            check_content(repository, snapshots[len(snapshots) - 1], known.attempted)
            known.content[len(snapshots) - 1] = known.attempted
        else:
            assert not extra
    life = content_of(99)
    snapshot = repository.commit(tree_of(life), step=99)
    known.content[snapshot.number] = life
    repository.collect()
    snapshots, damaged = repository.history()
    assert damaged == {}
    check_all(repository, snapshots, known)
    check_nothing_is_left(repository)
    assert repository.verify().ok
    assert repository.collect() == 0


def check_all(repository: Repository, snapshots: dict[int, Snapshot], known: Known) -> None:
    for number, content in known.content.items():
        snapshot = snapshots[number]
        assert known.tags.get(number, set()) <= set(snapshot.tags)
        if number in known.pruned:
            assert snapshot.pruned
        if snapshot.pruned:
            assert number in known.maybe_pruned
            assert not snapshot.tags
        else:
            check_content(repository, snapshot, content)
            if number in known.signed:
                check_signed(repository, number, known.signed[number])


def check_signed(repository: Repository, number: int, key: bytes) -> None:
    try:
        repository.check_signature(f"id:{number}", key)
    except UntrustedError as error:
        raise AssertionError(f"the signature of {number} was acknowledged") from error


def check_nothing_is_left(repository: Repository) -> None:
    """Only what unpruned snapshots need is in the store."""
    there = repository.snapshots
    packs = {f"{pack.id}.safetensors" for pack in survey(repository._documents, there, strict=True).packs}
    assert set(repository.store.list("packs")) == packs
    assert set(repository.store.list("manifests")) == {f"{snapshot.manifest.id}.json" for snapshot in there}
