"""Several processes training one model (plain DDP): the first commits, all restore.

Invariant: model and optimizer are equal on every rank and are saved once; random, generator and loader state are per
rank, kept under `ranks/<rank>/<name>` for all but the first. Every call here that talks to others is made by all.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from safepoint.adapters import Processes, find, processes, random_states
from safepoint.api.announce import announce
from safepoint.api.plan import Source
from safepoint.api.tracked import RANDOM, expand_all
from safepoint.codec import decode_node, decode_value, encode_node, encode_value
from safepoint.errors import ConflictError
from safepoint.repository import Before, Progress
from safepoint.tree import Branch, Leaf, StateTree, Tensor, TensorSpec

T = TypeVar("T")


@final
class Ranks:
    """This process among those that train together; one of one where nothing is distributed."""

    @property
    def _group(self) -> Processes | None:
        """Asked for each time: the processes may find each other after the manager was made."""
        return processes()

    @property
    def rank(self) -> int:
        """Of this process."""
        return 0 if self._group is None else self._group.world()[0]

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self._group is None else self._group.world()[1]

    @property
    def commits(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def decide(self, decision: Callable[[], T], encode: Callable[[T], str], decode: Callable[[str], T]) -> T:
        """What the first process decides; its error is everybody's error, so that nobody waits for ever.

        Raises:
            ConflictError: the first process failed; its own error is raised there.
        """
        if self._group is None or self.size == 1:
            return decision()
        if self.rank != 0:
            text = self._group.broadcast(b"").decode()
            if text.startswith("!"):
                raise ConflictError("the first process could not go on", found=text[1:])
            return decode(text[1:])
        try:
            result = decision()
        except BaseException as error:
            self._group.broadcast(f"!{error}".encode())
            raise
        self._group.broadcast(f"={encode(result)}".encode())
        return result

    def any(self, flag: bool) -> bool:  # noqa: FBT001 — it is the one thing to say
        """Whether any process says so."""
        if self._group is None or self.size == 1:
            return flag
        return b"1" in self._group.gather(b"1" if flag else b"0")

    def gather(self, capture: Callable[[], StateTree], objects: Mapping[str, Any], *, random: bool) -> StateTree:
        """What to save: the captured tree, this process' random state, and what is every other process' own.

        Raises:
            ConflictError: another process could not capture its state; its own error is raised there.
        """
        group = self._group
        if group is None or self.size == 1:
            return capture().adding(_random_tree() if random else {})
        try:
            tree = capture()
            own = _random_tree() if random else {}
            mine = b"=" + _pack(StateTree.join({**{n: tree.child(n) for n in self._per_rank(objects)}, **own}))
        except Exception as error:
            group.gather(f"!{error}".encode())
            raise
        everyone = group.gather(mine)
        for rank, data in enumerate(everyone):
            if data.startswith(b"!"):
                raise ConflictError(f"process {rank} could not capture its state", found=data[1:].decode())
        if self.rank == 0:
            for rank, data in enumerate(everyone[1:], start=1):
                theirs = _unpack(data[1:])
                own |= {f"ranks/{rank}/{name}": theirs.child(name) for name in theirs.names()}
        return tree.adding(own)

    def view(self, source: Source, objects: Mapping[str, Any]) -> Source:
        """A saved tree as this process sees it: its own state in place of the first's."""
        if self.rank == 0:
            return source
        own = [
            name for name in [*self._per_rank(objects), RANDOM] if f"ranks/{self.rank}/{name}" in source.tree.names()
        ]
        if not own:
            announce(f"the snapshot has no state of rank {self.rank}: it takes that of rank 0", warning=True)
        return _RankView(source, self.rank, own)

    def _per_rank(self, objects: Mapping[str, Any]) -> list[str]:
        """Tracked names whose state differs between processes: generators and loaders."""

        def differs(obj: Any) -> bool:
            test = getattr(find(obj), "per_rank", None)
            return bool(getattr(obj, "per_rank", False)) if test is None else bool(test(obj))

        return [name for name, obj in expand_all(objects).items() if differs(obj)]


@final
class _RankView:
    """A source in which `ranks/<rank>/<name>` stands for `<name>`."""

    def __init__(self, source: Source, rank: int, own: Iterable[str]) -> None:
        self._source = source
        self._real: dict[str, str] = {}
        tree = source.tree
        children = {name: tree.child(name) for name in tree.names() if not name.startswith("ranks/")}
        real = {name: name for name in children}
        for name in own:
            real[name] = f"ranks/{rank}/{name}"
            children[name] = tree.child(real[name])
        self.tree = StateTree.join(children)
        for name, child in children.items():
            for leaf in child.leaves:
                tail = f"/{leaf}" if leaf else ""
                self._real[name + tail] = real[name] + tail

    def load(
        self,
        names: Iterable[str],
        *,
        into: Mapping[str, NDArray[np.uint8]] | None = None,
        before: Before | None = None,
        past_cache: bool = False,
        progress: Progress | None = None,
    ) -> StateTree:
        """As the source's, under this process' names."""
        seen = {self._real[name]: name for name in names}
        there = {self._real[name]: memory for name, memory in (into or {}).items()}
        loaded = self._source.load(seen, into=there, before=before, past_cache=past_cache, progress=progress)
        return StateTree({seen[name]: leaf for name, leaf in loaded.leaves.items()}, Branch("dict"))

    def waits(self, names: Iterable[str]) -> bool:
        """As the source's, under this process' names."""
        return self._source.waits([self._real[name] for name in names])

    def check(self, names: Iterable[str], *, progress: Progress | None = None) -> None:
        """As the source's, under this process' names."""
        self._source.check([self._real[name] for name in names], progress=progress)

    def stream(self, names: Iterable[str], *, progress: Progress | None = None) -> Mapping[str, Tensor]:
        """As the source's, under this process' names."""
        seen = {self._real[name]: name for name in names}
        return {seen[name]: tensor for name, tensor in self._source.stream(seen, progress=progress).items()}

    def same(self, first: str, second: str) -> bool:
        """As the source's, under this process' names."""
        return self._source.same(self._real[first], self._real[second])


def _random_tree() -> dict[str, StateTree]:
    return {RANDOM: StateTree.join({name: state.capture() for name, state in random_states().items()})}


def _pack(tree: StateTree) -> bytes:
    tensors = [
        (name, t.spec.dtype, t.spec.shape, base64.b64encode(t.read().tobytes()).decode())
        for name, t in tree.tensors.items()
    ]
    values = [(name, encode_value(leaf)) for name, leaf in tree.leaves.items() if not isinstance(leaf, Tensor)]
    return msgspec.json.encode((encode_node(tree.skeleton), values, tensors))


def _unpack(data: bytes) -> StateTree:
    skeleton, values, tensors = msgspec.json.decode(data)
    leaves: dict[str, Leaf] = {name: decode_value(value) for name, value in values}
    for name, dtype, shape, text in tensors:
        content = np.frombuffer(base64.b64decode(text), np.uint8)
        leaves[name] = Tensor.of_bytes(content, TensorSpec(tuple(shape), dtype))
    return StateTree(leaves, decode_node(skeleton))
