"""What leaves are called in a stranger's file, and how they are put together there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from safepoint.api.open import Tensors
from safepoint.tree import Branch, LeafRef, Node, StateTree, Value, join_name

ALONE = "array"
"""What a tensor without a name, as in `.npy`, is called where it needs one."""

_CONTAINERS = frozenset({"dict", "list", "tuple"})


def foreign_names(tensors: Tensors, leaves: Collection[str], kind: str) -> dict[str, str]:
    """Name → name in a stranger's file of a kind: without the tracked name, if all tensors are of one object."""
    slots = _keras_slots(tensors.tree) if kind == "hdf5" else {}
    only = _only_object(tensors, leaves)
    prefix = f"{only}/" if only else ""
    return {name: slots.get(name, name).removeprefix(prefix) or ALONE for name in leaves}


def arranged(tensors: Tensors, names: Mapping[str, str]) -> Node:
    """Dictionaries, lists and tuples as the source has them, of those leaves that have a new name; leaves by that.

    Objects of which the source knows names alone become dictionaries, one in the other where names have slashes.
    """
    tree = tensors.tree
    if tensors.kind != "snapshot":
        return _of_one(tree, names)
    only = _only_object(tensors, names)
    parts: dict[Value, Node] = {}
    for top in tree.names():
        found = tree.child(top)
        new_names = {name: new for name in found.leaves if (new := names.get(join_name(top, name))) is not None}
        part = _of_one(found, new_names, prefix="" if top == only else f"{top}/") if new_names else Branch("dict")
        if top != only:
            parts |= {top: part} if new_names else {}
        elif len(new_names) == len(names):
            return part
        elif isinstance(part, Branch) and part.kind == "dict" and parts.keys().isdisjoint(part.keys):
            parts |= zip(part.keys, part.children, strict=True)
        else:
            return by_names(names.values())
    return Branch("dict", tuple(parts), tuple(parts.values()))


def _only_object(tensors: Tensors, names: Iterable[str]) -> str:
    """The tracked name of the one object of a snapshot that all tensors are of; "" if there is none."""
    if tensors.kind != "snapshot":
        return ""
    tops = {name.partition("/")[0] for name in names if name in tensors.specs}
    return tops.pop() if len(tops) == 1 else ""


def by_names(names: Iterable[str], *, prefix: str = "") -> Branch:
    """`{"model": {"encoder.weight": ...}}` of `model/encoder.weight`; below a name that is a leaf nothing is nested.

    Without `prefix`, which all have.
    """
    relative = {name.removeprefix(prefix): name for name in names}
    root: dict[str, Any] = {}
    for short, name in relative.items():
        node, above, rest = root, "", short
        while "/" in rest:
            part, _, below = rest.partition("/")
            above = join_name(above, part)
            if not part or not below or above in relative:
                break
            node, rest = node.setdefault(part, {}), below
        node[rest] = LeafRef(name)
    return _branch(root)


def _branch(node: Mapping[str, Any]) -> Branch:
    children = (_branch(child) if isinstance(child, dict) else child for child in node.values())
    return Branch("dict", tuple(node), tuple(children))


def _of_one(tree: StateTree, names: Mapping[str, str], *, prefix: str = "") -> Node:
    """The part of a skeleton that leaves are taken of; by their names, where it does not say where they belong."""
    found = _taken(tree.skeleton, names, whole=len(names) == len(tree.leaves))
    if isinstance(found, Branch) and {*_refs(found)} == {*names.values()}:
        return found
    if prefix and names.keys() == {""}:  # a value that is tracked by itself
        return LeafRef(names[""])
    return by_names(names.values(), prefix=prefix)


def _taken(node: Node, names: Mapping[str, str], *, whole: bool) -> Node | None:
    """What is left of a skeleton; an index stays what it was: a list that lacks some becomes a dictionary."""
    if isinstance(node, LeafRef):
        name = names.get(node.name)
        return None if name is None else LeafRef(name, node.kind)
    if node.kind not in _CONTAINERS:
        return None
    children = [_taken(child, names, whole=whole) for child in node.children]
    kept = [index for index, child in enumerate(children) if child is not None]
    if not kept and not (whole and not children):
        return None
    keys = node.keys or tuple(range(len(children)))
    is_same = len(kept) == len(children)
    return Branch(
        node.kind if is_same else "dict",
        node.keys if is_same else tuple(keys[index] for index in kept),
        tuple(child for child in children if child is not None),
    )


def _refs(node: Node) -> Iterator[str]:
    if isinstance(node, LeafRef):
        yield node.name
        return
    for child in node.children:
        yield from _refs(child)


def _keras_slots(tree: StateTree) -> dict[str, str]:
    """Name → name in Keras' HDF5 of the variables of optimizers: `optimizer/vars/<n>`, counted as in the snapshot.

    Source: `BaseOptimizer.save_own_variables` of Keras 3.15. One that wraps another has them twice there, and keeps
    the names that it has here.
    """
    found: dict[str, str] = {}
    for path in _optimizers(tree):
        mine = [name for name in tree.tensors if name.startswith(f"{path}/")]
        if not any("/inner_optimizer/" in name.removeprefix(path) for name in mine):
            found |= {name: f"{path}/vars/{index}" for index, name in enumerate(mine)}
    return found


def _optimizers(tree: StateTree) -> Iterator[str]:
    """The paths of Keras' optimizers that were compiled into models: into the whole, or into one that was tracked."""
    tops = zip(tree.names(), getattr(tree.skeleton, "children", ()), strict=False)
    for top, model in [("", tree.skeleton), *tops]:
        if isinstance(model, Branch) and model.kind == "keras":
            for part in model.children:
                if isinstance(part, Branch) and part.kind == "keras.optimizer":
                    yield join_name(top, str(part.keys[0]))
