"""Dictionaries, lists and tuples of arrays and plain values, and single arrays, restored in place.

Invariant: an array that exists is written in place, so that other references to it see the restored content; values
and what lists hold are data and come back as they were saved, however many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from safepoint.adapters.containers import CONTAINERS, MAX_DEPTH, NUMBERS, capture, fill, kind_of
from safepoint.adapters.protocol import Scope
from safepoint.tree import Branch, Leaf, LeafRef, Node, StateTree, Tensor, join_name

OPAQUE = False


def handles(obj: Any) -> bool:
    """Dictionaries, lists and tuples, and single tensors of any framework in use."""
    return isinstance(obj, dict) or type(obj) in {list, tuple} or kind_of(obj) is not None


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """Its tensors: an optimizer over a dictionary of parameters finds its owners here."""
    return [(name, leaf) for name, leaf in _walk(obj, "") if kind_of(leaf) is not None]


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of a container; names are keys and positions joined by slashes."""
    leaves: dict[str, Leaf] = {}
    return StateTree(leaves, capture(obj, leaves, separate=scope.separate))


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The live leaves, plus saved values, plus saved tensors where the snapshot decides what there is (lists)."""
    live = to_tree(like, scope)
    grows = list(_growing(live.skeleton, ""))
    if not grows and saved.leaves.keys() == live.leaves.keys() == live.tensors.keys() == saved.tensors.keys():
        return live  # nearly always, and quick
    branches = set(_branches(saved.skeleton, ""))

    def is_replaced(name: str, leaf: Leaf) -> bool:
        """Whether the saved data has another form here: a container for a value, or a value for a container."""
        parents = (name[:end] for end, c in enumerate(name) if c == "/")
        return not isinstance(leaf, Tensor) and (name in branches or any(p in saved.leaves for p in parents))

    leaves = {
        name: leaf
        for name, leaf in live.leaves.items()
        if name in saved.leaves or not (_within(name, grows) or is_replaced(name, leaf))
    }
    for name, leaf in saved.leaves.items():
        is_data = not isinstance(leaf, Tensor) and not isinstance(leaves.get(name), Tensor)
        if is_data or _within(name, grows):
            leaves[name] = leaf
    return StateTree(leaves, live.skeleton)


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Make `like` what was saved: same containers, arrays written in place where they fit.

    What another adapter saved (a module), or a file of tensors alone, has no containers in its skeleton: the live ones
    take its leaves, by name.
    """
    plain = _is_plain(tree.skeleton) and not (tree.leaves and tree.skeleton == Branch("dict"))
    return fill(tree.skeleton if plain else to_tree(like, scope).skeleton, like, tree.leaves)


def _is_plain(node: Node) -> bool:
    if isinstance(node, LeafRef):
        return True
    return node.kind in CONTAINERS and all(_is_plain(child) for child in node.children)


def _growing(node: Node, path: str) -> Iterator[str]:
    """Paths of lists and of empty containers: their saved content takes the place of the live one."""
    if isinstance(node, LeafRef):
        if node.kind in NUMBERS:
            yield path
        return
    if node.kind == "list" or not node.children:
        yield path
        return
    keys = node.keys if node.kind == "dict" else range(len(node.children))
    for key, child in zip(keys, node.children, strict=True):
        if isinstance(child, Branch) or child.kind in NUMBERS:
            yield from _growing(child, join_name(path, str(key)))


def _branches(node: Node, path: str) -> Iterator[str]:
    """Paths of all containers."""
    if isinstance(node, LeafRef):
        return
    yield path
    keys = node.keys if node.kind == "dict" else range(len(node.children))
    for key, child in zip(keys, node.children, strict=True):
        if isinstance(child, Branch):
            yield from _branches(child, join_name(path, str(key)))


def _within(name: str, paths: list[str]) -> bool:
    return any(path in {"", name} or name.startswith(f"{path}/") for path in paths)


def _walk(obj: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        return  # `capture` refuses it, and says where
    if isinstance(obj, dict):
        for key, child in obj.items():
            yield from _walk(child, join_name(path, str(key)), depth + 1)
    elif type(obj) in {list, tuple}:
        for index, child in enumerate(obj):
            yield from _walk(child, join_name(path, str(index)), depth + 1)
    else:
        yield path, obj
