"""A repository behaves as a dictionary of contents with tags and metrics, whatever is done to it in whatever order."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.crash.scenario import KeepLast
from tests.repository.trees import assert_same, load, tree_of

from safepoint.errors import ExistsError, UnsupportedError
from safepoint.repository import Repository
from safepoint.store import MemoryStore
from safepoint.testing.faults import FaultyStore, SimulatedDeath

TAGS = st.sampled_from(["a", "b", "release-1"])


@dataclass
class Expected:
    content: dict[str, Any]
    step: int
    parent: int | None
    tags: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    pruned: bool = False
    verified: bool = False


class RepositoryModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # The same names in the same life: which blocks a save reads back depends on them, and hypothesis repeats lives.
        names = random.Random(0)
        self.naming = mock.patch.object(secrets, "token_hex", lambda length: names.randbytes(length).hex())
        self.naming.start()
        self.store = MemoryStore()
        self.repository = Repository(self.store)
        self.expected: list[Expected] = []
        self.state: dict[str, Any] = {"frozen": np.arange(3000), "w": np.zeros(1000, np.float32), "step": 0}

    # What it should know of itself.

    def there(self) -> list[int]:
        return [number for number, entry in enumerate(self.expected) if not entry.pruned]

    def protected(self) -> set[int]:
        there = self.there()
        verified = [number for number in there if self.expected[number].verified]
        return {n for n in there if self.expected[n].tags} | set(verified[-1:]) | set(there[-1:])

    def lineage(self) -> list[int]:
        line: list[int] = []
        number: int | None = len(self.expected) - 1 if self.expected else None
        while number is not None:
            line.append(number)
            number = self.expected[number].parent
        return line[::-1]

    # What can happen.

    @rule(name=st.sampled_from(["w", "v", "late/x"]), value=st.integers(0, 3), size=st.sampled_from([0, 7, 5000]))
    def train(self, name: str, value: int, size: int) -> None:
        self.state = {**self.state, name: np.full(size, value, np.float32)}

    @rule(value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text("ab\ud800é"), st.binary()))
    def note(self, value: Any) -> None:
        self.state = {**self.state, "note": value}

    @rule(data=st.data(), fresh=st.booleans(), tag=st.none() | TAGS, loss=st.none() | st.floats(0, 9))
    def commit(self, data: st.DataObject, fresh: bool, tag: str | None, loss: float | None) -> None:  # noqa: FBT001
        number = len(self.expected)
        parent = None if fresh or not number else data.draw(st.sampled_from(range(number)))
        step = 0 if parent is None else self.expected[parent].step + 1
        metrics = {} if loss is None else {"loss": loss}
        self.state = {**self.state, "step": step}
        taken = any(tag in entry.tags for entry in self.expected if not entry.pruned)
        try:
            snapshot = self.repository.commit(
                tree_of(self.state), parent=parent, newest=number - 1 if number else None, metrics=metrics,
                tags=[tag] if tag else [],
            )  # fmt: skip
        except ExistsError:
            assert taken
            return
        assert not taken
        assert (snapshot.number, snapshot.step) == (number, step)
        self.expected.append(Expected(self.state, step, parent, {tag} if tag else set(), metrics))

    @precondition(lambda self: self.there())
    @rule(data=st.data(), tag=TAGS)
    def tag(self, data: st.DataObject, tag: str) -> None:
        number = data.draw(st.sampled_from(self.there()))
        holder = [n for n in self.there() if tag in self.expected[n].tags]
        try:
            self.repository.tag(f"id:{number}", tag)
        except ExistsError:
            assert holder
            assert holder != [number]
            return
        assert holder in ([], [number])
        self.expected[number].tags.add(tag)

    @rule(tag=TAGS)
    def untag(self, tag: str) -> None:
        holder = [n for n in self.there() if tag in self.expected[n].tags]
        if holder:
            self.repository.untag(tag)
            self.expected[holder[0]].tags.remove(tag)

    @precondition(lambda self: self.there())
    @rule(data=st.data(), name=st.sampled_from(["loss", "accuracy"]), value=st.floats(0, 1))
    def add_metrics(self, data: st.DataObject, name: str, value: float) -> None:
        number = data.draw(st.sampled_from(self.there()))
        self.repository.add_metrics(f"id:{number}", {name: value})
        self.expected[number].metrics[name] = value

    @precondition(lambda self: self.there())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.there()))
        try:
            self.repository.delete(f"id:{number}")
        except UnsupportedError:
            assert number in self.protected()
            return
        assert number not in self.protected()
        self.expected[number].pruned = True

    @precondition(lambda self: self.expected)
    @rule(count=st.integers(1, 3), dry_run=st.booleans())
    def prune(self, count: int, dry_run: bool) -> None:  # noqa: FBT001
        line = [number for number in self.lineage() if not self.expected[number].pruned]
        doomed = [number for number in line[:-count] if number not in self.protected()]
        assert [s.number for s in self.repository.prune([KeepLast(count)], dry_run=dry_run)] == doomed
        for number in () if dry_run else doomed:
            self.expected[number].pruned = True

    @precondition(lambda self: self.expected)
    @rule()
    def collect(self) -> None:
        before = sum(map(len, self.store.files.values()))
        assert self.repository.collect() == before - sum(map(len, self.store.files.values()))
        assert len(self.store.list("manifests")) == len(self.there())
        assert self.repository.collect() == 0

    @precondition(lambda self: self.there())
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.there()))
        result = self.repository.verify(f"id:{number}")
        assert (result.ok, result.whole) == (True, (number,))
        self.expected[number].verified = True

    @rule()
    def reopen(self) -> None:
        self.repository = Repository(self.store)

    @rule(at=st.integers(0, 40), what=st.sampled_from(["commit", "collect", "tag"]))
    def die(self, at: int, what: str) -> None:
        """Another process dies in the middle of something."""
        faulty = Repository(FaultyStore(self.store, at=at))
        number = len(self.expected)
        try:
            if what == "commit":
                faulty.commit(tree_of(self.state), step=number)
            elif what == "collect" and self.expected:
                faulty.collect()
            elif what == "tag" and self.there():
                faulty.tag("latest", "dying")
        except (SimulatedDeath, ExistsError, UnsupportedError):
            pass
        if not Repository(self.store).exists:
            return
        found = Repository(self.store).history()[0]
        if len(found) == number + 1:  # it died after the commit, or lived
            parent = number - 1 if number else None
            self.expected.append(Expected(self.state, number, parent))
        for snapshot in found.values():
            if "dying" in snapshot.tags:
                self.expected[snapshot.number].tags.add("dying")

    def teardown(self) -> None:
        self.naming.stop()

    # What must be true at any time.

    @invariant()
    def history_is_what_was_done(self) -> None:
        if not self.expected:
            return
        snapshots, damaged = self.repository.history()
        assert damaged == {}
        assert list(snapshots) == list(range(len(self.expected)))
        for number, entry in enumerate(self.expected):
            snapshot = snapshots[number]
            assert snapshot.pruned == entry.pruned
            assert snapshot.parent == entry.parent
            assert snapshot.step == entry.step
            assert set(snapshot.tags) == entry.tags
            assert dict(snapshot.metrics) == entry.metrics
            assert (snapshot.verified is not None) == entry.verified

    @invariant()
    def everything_that_is_there_can_be_loaded(self) -> None:
        for number in self.there():
            assert_same(load(self.repository, f"id:{number}"), self.expected[number].content)


RepositoryModel.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestRepositoryModel = RepositoryModel.TestCase
