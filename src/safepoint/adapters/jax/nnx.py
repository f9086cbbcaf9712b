"""Flax NNX objects: modules, optimizers, rngs, metrics, restored in place.

Invariant: flax is never imported here; an NNX object can only exist where `flax.nnx` is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from safepoint.adapters.jax import trees
from safepoint.adapters.protocol import Scope
from safepoint.errors import UnsupportedError
from safepoint.tree import Branch, Leaf, Node


def is_object(obj: Any) -> bool:
    """Whether `obj` is an NNX object: mutable, so that a restore changes it in place."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(obj, (getattr(nnx, "Pytree", nnx.Module), nnx.Variable))


def variables(obj: Any, scope: Scope) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """Path, name and raw value of every variable; what is shared comes once, what has a name of its own not at all.

    Raises:
        UnsupportedError: this version of Flax is too old.
    """
    nnx = sys.modules["flax.nnx"]
    if not (hasattr(nnx, "Pytree") and hasattr(nnx.Variable, "get_raw_value")):
        raise UnsupportedError(
            f"{type(obj).__name__} cannot be captured: this version of flax.nnx is too old",
            expected="flax 0.12.1 or newer",
            found=getattr(sys.modules.get("flax"), "__version__", None),
            hint="upgrade flax, or track nnx.to_pure_dict(nnx.state(...)) and pass it at each save",
        )
    elsewhere = [path for path, node in nnx.iter_graph(obj) if path and id(node) in scope.separate]
    if isinstance(obj, nnx.Variable):
        yield (), "", obj.get_raw_value()
        return
    for path, leaf in nnx.to_flat_state(nnx.state(obj)):
        if not any(path[: len(other)] == other for other in elsewhere):
            raw = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
            yield path, "/".join(trees.spell(key) for key in path), raw


def capture(obj: Any, found: dict[str, Leaf], scope: Scope, *, alive: bool) -> Node:
    """Add the state of `obj` to `found` and return its skeleton; see `trees.capture`."""
    nodes = [trees.capture(raw, found, name, 1, alive=alive) for _, name, raw in variables(obj, scope)]
    return Branch("nnx", (), tuple(node for node in nodes if node is not None))


def leaves(obj: Any, scope: Scope) -> Iterator[tuple[str, Any]]:
    """Every live leaf with its name."""
    for _, name, raw in variables(obj, scope):
        yield from trees.walk(raw, name, 1)


def update(obj: Any, place: Callable[[str, Any], Any], scope: Scope) -> None:
    """Give each variable its new value; all are made before the first is given."""
    nnx = sys.modules["flax.nnx"]
    new = {}
    for path, name, raw in variables(obj, scope):
        value = trees.rebuild(raw, place, name)
        if value is not raw:
            new[path] = value
    if isinstance(obj, nnx.Variable):
        for value in new.values():
            obj.set_raw_value(value)
    elif new:
        nnx.update(obj, nnx.from_flat_state(new))
