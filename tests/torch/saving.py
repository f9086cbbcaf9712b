"""What the tests of this folder share: freezing a state and putting it into another object, as a restore does."""

from __future__ import annotations

from typing import Any

from safepoint.adapters import Scope, find
from safepoint.adapters import torch as adapter
from safepoint.tree import StateTree, Tensor, assign, match

__all__ = ["adapter", "assign", "freeze", "put", "save", "scope"]


def scope(**objects: Any) -> Scope:
    owners = {}
    for name, obj in objects.items():
        for relative, parameter in adapter.owners(obj):
            owners.setdefault(id(parameter), f"{name}/{relative}")
    return Scope(owners)


def freeze(tree: StateTree) -> StateTree:
    return tree.map_tensors(lambda _, leaf: Tensor.of_bytes(leaf.read().copy(), leaf.spec))


def save(obj: Any, using: Scope | None = None) -> StateTree:
    found = find(obj)
    assert found is not None
    return freeze(found.to_tree(obj, using or Scope()))


def put(saved: StateTree, like: Any, using: Scope | None = None) -> Any:
    """Strictly: what the template wants must be there and fit."""
    found = find(like)
    assert found is not None
    template = found.template(like, saved, using or Scope())
    difference = match(template.leaves, {n: x for n, x in saved.leaves.items() if n in template.leaves})
    error = difference.error("the snapshot", cast=False)
    if error is not None:
        raise error
    leaves = {name: saved.leaves[name] for name in template.leaves}
    return found.from_tree(StateTree(leaves, saved.skeleton), like, using or Scope())
