"""Pytrees of any kind ↔ names and leaves, one level at a time.

Invariant: containers, static fields and callables are the live tree's, never the snapshot's; every other leaf has a
name, or the tree is refused by that leaf's path. A list of plain values counts as one leaf: it is data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import jax
import numpy as np

from safepoint.adapters.containers import MAX_DEPTH, kind_of
from safepoint.adapters.containers import capture as capture_values
from safepoint.adapters.jax import leaves
from safepoint.errors import UnsupportedError
from safepoint.tree import Branch, Leaf, LeafRef, Node, Value, is_value, join_name


class Level(NamedTuple):
    """One container of a pytree.

    Attributes:
        kind: the skeleton's word: `list`, `tuple`, or `dict` for whatever has keys or fields.
        keys: of the children; for lists and tuples none.
        names: of the children, as they are spelled in paths.
        children: in order.
        rebuild: a container of the same type around other children.
    """

    kind: str
    keys: tuple[Value, ...]
    names: tuple[str, ...]
    children: tuple[Any, ...]
    rebuild: Callable[[list[Any]], Any]


def level(obj: Any) -> Level | None:
    """The container `obj` taken apart, or None where it is a leaf."""
    if type(obj) is dict:
        keys = names = own = tuple(obj)
        if not all(type(key) is str for key in keys):
            names = tuple(spell(key) for key in keys)
            own = tuple(key if is_value(key) else str(key) for key in keys)
        return Level("dict", own, names, tuple(obj.values()), lambda new: dict(zip(keys, new, strict=True)))
    if is_data(obj):
        return None
    if type(obj) in {list, tuple}:
        names = tuple(str(index) for index in range(len(obj)))
        return Level("list" if type(obj) is list else "tuple", (), names, tuple(obj), type(obj))
    if not is_node(obj):
        return None
    pairs, structure = jax.tree_util.tree_flatten_with_path(obj, is_leaf=lambda inner: inner is not obj)
    names = ("",) if is_variable(obj) and len(pairs) == 1 else tuple(_spell(path) for path, _ in pairs)
    return Level("dict", names, names, tuple(child for _, child in pairs), structure.unflatten)


def is_node(obj: Any) -> bool:
    """Whether JAX flattens `obj`; `None`, which it takes for an empty container, is a value here."""
    if obj is None or isinstance(obj, jax.Array) or is_value(obj):
        return False
    return not jax.tree_util.all_leaves((obj,))


def is_plain(obj: Any) -> bool:
    """Whether `obj` is a container that programs without JAX have too."""
    return isinstance(obj, dict) or type(obj) in {list, tuple}


def is_data(obj: Any) -> bool:
    """Whether `obj` is a list of nothing but values (a history of losses), which is as long as it was saved.

    `None` is none of these: it may stand for an array that is not there.
    """
    return type(obj) is list and all(item is not None and is_value(item) for item in obj)


def is_variable(obj: Any) -> bool:
    """Whether `obj` is an `nnx.Variable`, which has its value's name."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(obj, nnx.Variable)


def is_live(obj: Any) -> bool:
    """Whether a leaf is the program's own, not state: a function, a class, a dtype."""
    return callable(obj) or isinstance(obj, np.dtype)


def walk(obj: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every leaf with its name: keys, positions and field names joined by slashes.

    Raises:
        UnsupportedError: it is nested too deep, or something inside is an object with a state of its own.
    """
    _check(obj, path, depth)
    inner = level(obj)
    if inner is None:
        yield path, obj
        return
    for name, child in zip(inner.names, inner.children, strict=True):
        yield from walk(child, join_name(path, name), depth + 1)


def capture(obj: Any, found: dict[str, Leaf], path: str = "", depth: int = 0, *, alive: bool) -> Node | None:
    """Add the leaves of `obj` to `found` and return its skeleton; None where there is nothing to save.

    Args:
        obj: the tree.
        found: takes its leaves by name.
        path: of `obj`.
        depth: of `obj`.
        alive: whether content is wanted, so that donated buffers are refused; a template may have given its own up.

    Raises:
        UnsupportedError: something inside cannot be saved; named by its path.
    """
    _check(obj, path, depth)
    inner = level(obj)
    if inner is not None:
        pairs = zip(inner.keys or inner.names, inner.names, inner.children, strict=True)
        nodes = [
            (key, capture(child, found, join_name(path, name), depth + 1, alive=alive)) for key, name, child in pairs
        ]
        if inner.names == ("",):
            return nodes[0][1]
        kept = [(key, node) for key, node in nodes if node is not None]
        return Branch(
            inner.kind, tuple(key for key, _ in kept) if inner.kind == "dict" else (), tuple(n for _, n in kept)
        )
    if is_data(obj):
        return capture_values(obj, found, path, depth)
    if not isinstance(obj, jax.Array) and not is_value(obj) and kind_of(obj) is None and is_live(obj):
        return None
    if path in found:
        raise UnsupportedError(
            f"two leaves are called {path!r}",
            hint="keys of one dictionary must differ by more than their type, and not spell a path",
        )
    if alive and leaves.is_deleted(obj):
        raise UnsupportedError(
            f"{path or 'the array'!r} was donated or deleted: its buffer is gone",
            hint="save what the jitted function returned, not what was given to it with donate_argnums",
        )
    found[path], kind = _leaf(obj, path)
    return LeafRef(path, kind)


def rebuild(obj: Any, place: Callable[[str, Any], Any], path: str = "") -> Any:
    """A tree like `obj` whose leaves are `place(name, live leaf)`; parts in which nothing changes are kept."""
    inner = level(obj)
    if inner is None:
        return place(path, obj)
    pairs = zip(inner.names, inner.children, strict=True)
    new = [rebuild(child, place, join_name(path, name)) for name, child in pairs]
    same = all(one is other for one, other in zip(new, inner.children, strict=True))
    return obj if same else inner.rebuild(new)


def _leaf(obj: Any, path: str) -> tuple[Leaf, str]:
    try:
        if isinstance(obj, jax.Array | jax.ShapeDtypeStruct):
            return leaves.to_leaf(obj), leaves.kind_of_array(obj)
        if is_value(obj):
            return obj, ""
        kind = kind_of(obj)
        if kind is not None:
            return kind.to_leaf(obj), kind.kind
    except UnsupportedError as error:
        message = f"{path or 'the array'!r} cannot be saved: {error.message}"
        raise UnsupportedError(message, expected=error.expected, found=error.found, hint=error.hint) from error
    raise UnsupportedError(
        f"{path or 'the object'!r} cannot be saved: {type(obj).__module__}.{type(obj).__qualname__}",
        expected="arrays, PRNG keys, plain values, functions, and containers that JAX knows",
        hint="make it a static field, or track it outside of this tree",
    )


def _check(obj: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"{path!r} is nested deeper than {MAX_DEPTH} levels (does it contain itself?)")
    if depth and not (is_plain(obj) or isinstance(obj, jax.Array) or is_value(obj)) and _has_own_state(obj):
        raise UnsupportedError(
            f"{path!r} is a {type(obj).__name__}, restored in place, inside a tree whose values are replaced",
            hint=f"track it under a name of its own: Checkpoint({path.rpartition('/')[2]}=...)",
        )


def _has_own_state(obj: Any) -> bool:
    """Whether `obj` is a framework's object with mutable state: a module, an optimizer, a generator."""
    if is_variable(obj) or kind_of(obj) is not None:
        return False
    from safepoint.adapters import find

    adapter = find(obj)
    immutable = getattr(adapter, "immutable", None)
    return adapter is not None and not (immutable is not None and immutable(obj))


def _spell(path: tuple[Any, ...]) -> str:
    """The name of a child, as its container calls it: a field, a key, a position."""
    (entry,) = path
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return spell(getattr(entry, attribute))
    return spell(entry)


def spell(key: Any) -> str:
    """A key as it stands in names, the same in every process.

    Raises:
        UnsupportedError: nothing says that it is: what `str` makes of an object may be its address.
    """
    if isinstance(key, Enum):
        return key.name
    if is_value(key) or isinstance(key, np.generic) or (type(key) is tuple and all(is_value(item) for item in key)):
        return str(key)
    raise UnsupportedError(
        f"a dictionary's key of {type(key).__module__}.{type(key).__qualname__} cannot be saved",
        expected="text, numbers, tuples of them, or members of an Enum",
        found=f"{key!r}"[:80],
    )
