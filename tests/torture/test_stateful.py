"""Whatever is done to a repository, in whatever order, through the public doors: it behaves as a list of contents.

Saves of both kinds, tags, restores, pruning, collection, verification, deaths at any store operation, flipped bits.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.crash.scenario import KeepLast
from tests.torture.report import Torture

import safepoint
from safepoint.errors import (
    ConflictError,
    CorruptionError,
    ExistsError,
    NotFoundError,
    SafepointError,
    StoreError,
    UnsupportedError,
)
from safepoint.repository import Repository, read
from safepoint.store import MemoryStore
from safepoint.testing.faults import FaultyStore, SimulatedDeath

Content = dict[str, Any]
steps_done = [0]


@dataclass
class Entry:
    content: Content
    tags: set[str] = field(default_factory=set)
    pruned: bool = False


def copy_of(state: dict[str, Any]) -> Content:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.items()}


def is_same(state: Content, content: Content) -> bool:
    return state.keys() == content.keys() and all(
        value.tobytes() == content[name].tobytes() if isinstance(value, np.ndarray) else value == content[name]
        for name, value in state.items()
    )


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.told: list[Entry] = []
        self.looked_at: set[str] = set()
        self.state: dict[str, Any] = {"frozen": np.arange(300.0), "w": np.zeros(3000, np.float32), "step": 0}
        self.checkpoint = safepoint.Checkpoint(state=self.state)
        self.manager: safepoint.CheckpointManager | None = None
        # The same names in the same life: which blocks a save reads back depends on them, and hypothesis repeats lives.
        names = random.Random(0)
        self.naming = mock.patch.object(secrets, "token_hex", lambda length: names.randbytes(length).hex())
        self.naming.start()

    # What it should know of itself.

    @property
    def repository(self) -> Repository:
        return Repository(self.store)

    def there(self) -> list[int]:
        return [number for number, entry in enumerate(self.told) if not entry.pruned]

    @contextmanager
    def unchanged_if_it_raises(self, *errors: type[Exception]) -> Iterator[None]:
        before = copy_of(self.state)
        try:
            yield
        except errors:
            assert is_same(self.state, before), "a restore that raised changed live objects"

    # What can happen.

    @rule(value=st.integers(0, 3), step=st.integers(0, 99))
    def train(self, value: int, step: int) -> None:
        self.state["w"] += value
        self.state["step"] = step

    @rule(tag=st.sampled_from(["", "a", "b", "c"]))
    def save(self, tag: str) -> None:
        try:
            snapshot = self.checkpoint.save(self.repository, tags=[tag] if tag else [])
        except ExistsError:
            assert any(tag in self.told[number].tags for number in self.there())
            return
        assert snapshot.number == len(self.told)
        self.told.append(Entry(copy_of(self.state), {tag} if tag else set()))

    @rule(value=st.integers(1, 3))
    def save_in_background(self, value: int) -> None:
        if self.manager is None:
            self.manager = safepoint.CheckpointManager(self.checkpoint, self.repository, keep=[], random=False)
            if self.told:
                self.manager.resume()
                assert is_same(self.state, self.told[self.there()[-1]].content)
        self.state["w"] += value
        content = copy_of(self.state)
        try:
            handle = self.manager.save(force=True)
            assert handle is not None
            self.state["w"] *= -1  # bytes on disk are the bytes at the call
            snapshot = handle.result()
        except ConflictError:  # another saved in between: this run is over
            self.let_go()
            return
        assert snapshot.number == len(self.told)
        self.told.append(Entry(content))

    @precondition(lambda self: self.manager is not None)
    @rule()
    def let_go(self) -> None:
        assert self.manager is not None
        with contextlib.suppress(ConflictError):
            self.manager.close()
        self.manager = None

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.told))))
        with self.unchanged_if_it_raises(NotFoundError):
            self.checkpoint.restore(self.repository, at=f"id:{number}")
            assert not self.told[number].pruned
            assert is_same(self.state, self.told[number].content)

    @precondition(lambda self: self.there())
    @rule(data=st.data(), tag=st.sampled_from(["a", "b", "c"]))
    def tag(self, data: st.DataObject, tag: str) -> None:
        number = data.draw(st.sampled_from(self.there()))
        holders = [n for n in self.there() if tag in self.told[n].tags]
        try:
            self.repository.tag(f"id:{number}", tag)
        except ExistsError:
            assert holders not in ([], [number])
            return
        assert holders in ([], [number])
        self.told[number].tags.add(tag)

    @rule(tag=st.sampled_from(["a", "b", "c"]))
    def untag(self, tag: str) -> None:
        for number in self.there():
            if tag in self.told[number].tags:
                self.repository.untag(tag)
                self.told[number].tags.remove(tag)

    @precondition(lambda self: self.there())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.there()))
        with contextlib.suppress(UnsupportedError):
            self.repository.delete(f"id:{number}")
            assert not self.told[number].tags
            assert number != self.there()[-1]
            self.told[number].pruned = True

    @precondition(lambda self: self.told)
    @rule(count=st.integers(1, 3))
    def prune(self, count: int) -> None:
        for snapshot in self.repository.prune([KeepLast(count)], dry_run=False):
            assert not self.told[snapshot.number].tags
            assert snapshot.number not in self.there()[-count:]
            self.told[snapshot.number].pruned = True

    @precondition(lambda self: self.told)
    @rule()
    def collect(self) -> None:
        self.repository.collect()
        assert len(self.store.list("manifests")) == len(self.there())
        assert self.repository.collect() == 0

    @precondition(lambda self: self.there())
    @rule()
    def verify(self) -> None:
        result = self.repository.verify()
        assert result.damage == ()
        assert set(result.whole) == set(self.there())

    @rule(at=st.integers(0, 45), what=st.sampled_from(["save", "prune", "collect", "tag"]))
    def die(self, at: int, what: str) -> None:
        """Another process dies in the middle of something."""
        faulty = Repository(FaultyStore(self.store, at=at))
        with contextlib.suppress(SimulatedDeath, SafepointError):
            if what == "save":
                self.checkpoint.save(faulty)
            elif what == "prune" and self.told:
                faulty.prune([KeepLast(2)], dry_run=False)
            elif what == "collect" and self.told:
                faulty.collect()
            elif what == "tag" and self.told:
                faulty.tag("latest", "c")
        self.learn(self.state)

    def learn(self, attempted: Content) -> None:
        """What somebody who died, or was refused, left whole."""
        found = self.repository.history()[0] if self.repository.exists else {}
        assert len(self.told) <= len(found) <= len(self.told) + 1
        if len(found) > len(self.told):
            self.told.append(Entry(copy_of(attempted)))
        for number, snapshot in found.items():
            self.told[number].pruned |= snapshot.pruned
            self.told[number].tags |= set(snapshot.tags) & {"c"}

    @rule(at=st.integers(0, 45), lasting=st.booleans())
    def is_refused(self, at: int, lasting: bool) -> None:  # noqa: FBT001
        """The disk fails once, or for a while."""
        faulty = Repository(FaultyStore(self.store, at=at, fault="input/output error", lasting=lasting))
        with contextlib.suppress(StoreError):
            self.checkpoint.save(faulty)
        self.learn(self.state)

    @precondition(lambda self: self.there())
    @rule(data=st.data(), bit=st.integers(0, 7))
    def damage(self, data: st.DataObject, bit: int) -> None:
        """A bit flips: found, named, passed over by resume, nothing collected; until the file is put back."""
        self.repository.collect()
        file = data.draw(st.sampled_from([name for name in self.store.files if name != "safepoint.json"]))
        whole = dict(self.store.files)
        changed = bytearray(whole[file])
        changed[data.draw(st.integers(0, (1 << 20) - 1)) % len(changed)] ^= 1 << bit  # lengths vary with the time
        self.store.files = {**whole, file: bytes(changed)}
        try:
            self.look_at_damage(file)
        finally:
            self.store.files = whole

    def look_at_damage(self, file: str) -> None:
        outdated = self.is_given_up(file) or (file.startswith("marks/") and not self.is_newest_mark(file))
        for number in self.there():  # before `verify`, which lets everybody know what is damaged
            with self.unchanged_if_it_raises(CorruptionError):
                self.checkpoint.restore(self.repository, at=f"id:{number}")
                assert is_same(self.state, self.told[number].content)
        damage = self.repository.verify().damage
        assert outdated or {one.file for one in damage} == {file}
        with contextlib.suppress(SafepointError), safepoint.CheckpointManager(
            self.checkpoint, self.repository, keep=[], random=False
        ) as manager:  # fmt: skip
            if manager.resume():
                assert any(is_same(self.state, self.told[number].content) for number in self.there())
        if not outdated and not file.startswith("packs/"):
            with contextlib.suppress(CorruptionError):
                self.repository.collect()
                raise AssertionError(f"collected although {file} is damaged")

    def is_given_up(self, file: str) -> bool:
        """Whether nobody misses it: a document of a snapshot that was pruned."""
        folder, _, name = file.partition("/")
        return folder in {"snapshots", "marks"} and self.told[int(name[:8])].pruned

    def is_newest_mark(self, file: str) -> bool:
        number, k = file.removeprefix("marks/").removesuffix(".json").split("-")
        return not any(f"marks/{number}-{later}.json" in self.store.files for later in range(int(k) + 1, int(k) + 99))

    # What must be true at any time.

    @invariant()
    def history_is_what_was_told(self) -> None:
        steps_done[0] += 1
        if not self.told:
            return
        snapshots, damaged = self.repository.history()
        assert damaged == {}
        assert list(snapshots) == list(range(len(self.told)))
        for number, entry in enumerate(self.told):
            assert snapshots[number].pruned == entry.pruned
            assert entry.pruned or set(snapshots[number].tags) == entry.tags

    @invariant()
    def what_is_there_can_be_loaded(self) -> None:
        """Looked at again where files of tensors came or went: a name is given once, so the same names are the same."""
        holding = {name for name in self.store.files if not name.startswith(("marks/", "snapshots/"))}
        if holding != self.looked_at:
            self.looked_at = holding
            for number in self.there()[-2:]:
                self.check_loads(number)

    def check_loads(self, number: int) -> None:
        repository = self.repository
        manifest = repository.manifest(repository.resolve(f"id:{number}"))
        leaves = manifest.load(manifest.tree.leaves).leaves
        for name, value in self.told[number].content.items():
            leaf = leaves[f"state/{name}"]
            found = leaf.numpy() if isinstance(value, np.ndarray) else leaf
            assert found.tobytes() == value.tobytes() if isinstance(value, np.ndarray) else found == value

    def teardown(self) -> None:
        if self.manager is not None:
            self.let_go()
        self.naming.stop()
        for number in self.there():
            self.check_loads(number)


PHASES = [Phase.generate, Phase.shrink]


def run(machine: type[Life], torture: Torture, examples: int) -> None:
    hypothesis.seed(torture.report.seed)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, database=None, phases=PHASES,
            derandomize=False, suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )  # fmt: skip


def test_a_repository_is_a_list_of_contents(torture: Torture) -> None:
    steps_done[0] = 0
    run(Life, torture, torture.budget(130, 5_800))
    torture.record("Stateful model", steps_done[0], "steps of hypothesis: save, background, tag, prune, die, damage, …")


class Short(Life):
    """Saves and damage, and little else: what a reader needs to be caught at."""

    die = is_refused = prune = collect = delete = untag = verify = save_in_background = None


def test_a_reader_that_compares_nothing_is_caught(torture: Torture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_compare", lambda piece, found: None)
    steps_done[0] = 0
    monkeypatch.setattr(__name__ + ".PHASES", [Phase.generate])
    with pytest.raises(AssertionError):
        run(Short, torture, 300)
    torture.record("Stateful model, broken on purpose", steps_done[0], "no checksum compared", controls="found")
