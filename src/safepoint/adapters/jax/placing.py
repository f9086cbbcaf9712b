"""What takes the place of a live leaf: the saved one, in the live one's form.

Invariant: a number and an array without axes take each other's place as they were saved (a step counter begins as a
Python number and is an array after the first jitted step); a list of plain values is as long as it was saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from safepoint.adapters.containers import NUMBERS, kind_of
from safepoint.adapters.jax import leaves, trees
from safepoint.adapters.protocol import TensorKind
from safepoint.tree import Leaf, LeafRef, Node, StateTree, Tensor, join_name


def words_of(node: Node) -> dict[str, str]:
    """Leaf's name → the skeleton's word for it; nothing else of a skeleton is used here."""
    if isinstance(node, LeafRef):
        return {node.name: node.kind}
    found: dict[str, str] = {}
    for child in node.children:
        found.update(words_of(child))
    return found


def accepted(live: StateTree, saved: StateTree, lists: Iterable[str]) -> dict[str, Leaf]:
    """The live leaves, with what the snapshot decides about: numbers, and what is in the lists of plain values."""
    found: dict[str, Leaf] = {}
    for name, leaf in live.leaves.items():
        other = saved.leaves.get(name)
        found[name] = other if other is not None and _exchange(leaf, other) else leaf
    words = words_of(saved.skeleton)
    for path in lists:
        taken = _list_names(path, saved.leaves, words)
        if taken:
            for name in _list_names(path, live.leaves, words_of(live.skeleton)):
                del found[name]
            found.update((name, saved.leaves[name]) for name in taken)
    return found


def put(tree: Mapping[str, Leaf], words: Mapping[str, str], name: str, live: Any) -> Any:
    """What takes the place of the live leaf `name`: the saved one, or itself where none was saved."""
    if trees.is_data(live):
        return _put_list(tree, words, name, live)
    if name not in tree:
        return live
    leaf = tree[name]
    if not isinstance(leaf, Tensor):
        return leaf
    word = words.get(name, "")
    kind = maker(word, live)
    if kind is not None:
        return kind.build(leaf)
    return leaves.build(leaf, live if isinstance(live, jax.Array | jax.ShapeDtypeStruct) else None, word)


def maker(word: str, live: Any) -> TensorKind | None:
    """What builds a tensor in the place of `live`, where that is not JAX: the live kind, or the saved one's `word`."""
    if isinstance(live, jax.Array | jax.ShapeDtypeStruct):
        return None
    kind = kind_of(live)
    if kind is not None:
        return kind
    from safepoint.adapters import tensor_kinds  # late: the table of adapters lists this package

    return next((kind for kind in tensor_kinds() if kind.kind == word != leaves.ARRAY), None)


def _put_list(tree: Mapping[str, Leaf], words: Mapping[str, str], path: str, live: list[Any]) -> list[Any]:
    whole = tree.get(path)
    if isinstance(whole, Tensor):
        return list(whole.numpy().tolist())
    new, taken = [], False
    for index, name in enumerate(_numbered(path)):
        if name in tree:
            taken = True
            new.append(put(tree, words, name, live[index] if index < len(live) else None))
        elif name not in words:
            break
        elif index < len(live):  # only some items were selected
            new.append(live[index])
    return new if taken else live


def _list_names(path: str, found: Mapping[str, Leaf], words: Mapping[str, str]) -> list[str]:
    """Names of what a list's content is kept as, in order: one tensor of numbers, or item by item."""
    if isinstance(found.get(path), Tensor):
        return [path] if words.get(path) in NUMBERS else []
    names: list[str] = []
    for name in _numbered(path):
        if name not in found or not _is_scalar(found[name]):
            return names
        names.append(name)
    return names


def _numbered(path: str) -> Iterator[str]:
    index = 0
    while True:
        yield join_name(path, str(index))
        index += 1


def _exchange(live: Leaf, saved: Leaf) -> bool:
    return (_is_number(live) and _is_scalar(saved)) or (_is_scalar(live) and _is_number(saved))


def _is_number(leaf: Leaf) -> bool:
    return type(leaf) in {bool, int, float, complex}


def _is_scalar(leaf: Leaf) -> bool:
    return not isinstance(leaf, Tensor) or leaf.spec.shape == ()
