"""StateTree: leaves by name, and the skeleton that puts them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from safepoint.errors import NotFoundError, UnsupportedError
from safepoint.tree.leaves import Leaf, Tensor
from safepoint.tree.names import check_names, join_name
from safepoint.tree.skeleton import Branch, Node


@final
@dataclass(frozen=True, slots=True)
class StateTree:
    """The state of one object or of a whole checkpoint; an adapter makes it, a manifest keeps it.

    Attributes:
        leaves: name → tensor or value, in the order in which they were captured. Names are relative to the tree;
            "" is the name of a tree that is a single leaf.
        skeleton: how the leaves are put together; an empty dict branch where names say it all.
    """

    leaves: Mapping[str, Leaf]
    skeleton: Node = field(default_factory=lambda: Branch("dict"))

    @staticmethod
    def join(children: Mapping[str, StateTree]) -> StateTree:
        """One tree of named trees: leaf `w` of child `model` becomes `model/w`; skeletons stay relative to their child.

        Raises:
            UnsupportedError: two leaves would have one name, or a name cannot be kept.
        """
        leaves: dict[str, Leaf] = {}
        for prefix, child in children.items():
            for name, leaf in child.leaves.items():
                full = join_name(prefix, name)
                if full in leaves:
                    raise UnsupportedError(f"two leaves are called {full!r}", hint="rename one of them")
                leaves[full] = leaf
        check_names(leaves)
        return StateTree(leaves, Branch("dict", tuple(children), tuple(c.skeleton for c in children.values())))

    def adding(self, children: Mapping[str, StateTree]) -> StateTree:
        """This joined tree with more children."""
        more = StateTree.join(children)
        clash = next((name for name in more.leaves if name in self.leaves), None)
        if clash is not None:
            raise UnsupportedError(f"two leaves are called {clash!r}", hint="rename one of them")
        assert isinstance(self.skeleton, Branch)
        assert isinstance(more.skeleton, Branch)
        keys = (*self.skeleton.keys, *more.skeleton.keys)
        return StateTree(
            {**self.leaves, **more.leaves}, Branch("dict", keys, (*self.skeleton.children, *more.skeleton.children))
        )

    def names(self) -> tuple[str, ...]:
        """Names of the children that `join` put together."""
        return tuple(str(key) for key in self.skeleton.keys) if isinstance(self.skeleton, Branch) else ()

    def child(self, name: str) -> StateTree:
        """The child that `join` was given under `name`.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self.names() or not isinstance(self.skeleton, Branch):
            raise NotFoundError(f"no {name!r} in this tree", found=", ".join(self.names()) or "nothing")
        prefix = f"{name}/"
        leaves = {n[len(prefix) :]: leaf for n, leaf in self.leaves.items() if n.startswith(prefix)}
        if name in self.leaves:
            leaves[""] = self.leaves[name]
        return StateTree(leaves, self.skeleton.children[self.names().index(name)])

    def map_tensors(self, function: Callable[[str, Tensor], Tensor]) -> StateTree:
        """The same tree with each tensor replaced by what `function(name, tensor)` returns."""
        leaves = {n: function(n, x) if isinstance(x, Tensor) else x for n, x in self.leaves.items()}
        return StateTree(leaves, self.skeleton)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: leaf for name, leaf in self.leaves.items() if isinstance(leaf, Tensor)}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.num_bytes for tensor in self.tensors.values())


def assign(tree: StateTree, live: StateTree) -> None:
    """Write every tensor of `tree` into the live tensor of the same name; specs were matched before."""
    for name, tensor in tree.tensors.items():
        target = live.leaves[name]
        if isinstance(target, Tensor) and target.write is not None:
            target.write(tensor.read())
