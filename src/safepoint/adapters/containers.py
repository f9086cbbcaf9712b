"""Nested dictionaries, lists and tuples ↔ leaves and skeleton: shared by every adapter with a state of that form.

Invariant: what `capture` cannot keep exactly it refuses, by path. Nothing that `fill` makes aliases the leaves' bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from safepoint.adapters.protocol import TensorKind
from safepoint.errors import UnsupportedError
from safepoint.tree import Branch, Leaf, LeafRef, Node, Tensor, TensorSpec, bytes_of, is_value, join_name

MAX_DEPTH = 64


_ELSEWHERE = "elsewhere"
CONTAINERS = frozenset({"dict", "list", "tuple", _ELSEWHERE})
"""Kinds of branches that `fill` fills; all others are adapters' words."""
_LONG = 64
NUMBERS = {"list.float": (float, np.float64), "list.int": (int, np.int64)}
"""Long lists of one kind of number (a loss history) are one tensor: a leaf a number would slow every save down."""

_KINDS: dict[type, TensorKind] = {}
"""Type → kind, of what was seen: a dictionary of 20,000 arrays asks 60,000 times."""


def capture(
    obj: Any, leaves: dict[str, Leaf], path: str = "", depth: int = 0, *, separate: AbstractSet[int] = frozenset()
) -> Node:
    """Add the leaves of `obj` to `leaves`, named by keys and positions joined by slashes, and return its skeleton.

    Objects inside whose `id` is in `separate` are tracked under names of their own and left out.

    Raises:
        UnsupportedError: something inside is neither a container, a tensor nor a plain value; it is named by its path.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"{path!r} is nested deeper than {MAX_DEPTH} levels (does it contain itself?)")
    if depth and id(obj) in separate:
        return Branch(_ELSEWHERE)
    kind = _KINDS.get(type(obj))
    if kind is not None:  # nearly always, and quick
        _add(leaves, path, _to_leaf(kind, obj, path))
        return LeafRef(path, kind.kind)
    if isinstance(obj, dict):
        items = list(obj.items())
        for key, _ in items:
            if type(key) is not str and not is_value(key):
                raise UnsupportedError(f"key {key!r} of {path or 'the dictionary'!r} cannot be saved", found=type(key))
        nodes = [capture(v, leaves, join_name(path, str(k)), depth + 1, separate=separate) for k, v in items]
        return Branch("dict", tuple([k for k, _ in items]), tuple(nodes))
    numbers = _numbers(obj)
    if numbers is not None:
        _add(leaves, path, numbers[1])
        return LeafRef(path, numbers[0])
    if type(obj) in {list, tuple}:
        nodes = [capture(v, leaves, join_name(path, str(i)), depth + 1, separate=separate) for i, v in enumerate(obj)]
        return Branch("list" if type(obj) is list else "tuple", (), tuple(nodes))
    kind = None if is_value(obj) else kind_of(obj)
    if kind is None and not is_value(obj):
        raise UnsupportedError(
            f"{path or 'the object'!r} cannot be saved: {type(obj).__module__}.{type(obj).__qualname__}",
            expected="arrays, plain values, dicts, lists, tuples, or an object with state_dict and load_state_dict",
            hint="give it state_dict() and load_state_dict(), or leave it out",
        )
    _add(leaves, path, obj if kind is None else _to_leaf(kind, obj, path))
    return LeafRef(path, "" if kind is None else kind.kind)


def rebuild(node: Node, leaves: Mapping[str, Leaf]) -> Any:
    """A new object from a skeleton and its leaves."""
    return fill(node, None, leaves)


def fill(node: Node, like: Any, leaves: Mapping[str, Leaf]) -> Any:
    """Make `like` what was saved: containers and mutable tensors of equal spec in place, the rest new.

    Leaves that are not in `leaves` stay as they are in `like`. Returns `like`, or what takes its place.
    """
    if isinstance(node, LeafRef):
        return _fill_leaf(node, like, leaves)
    if node.kind == _ELSEWHERE:
        return like
    if node.kind == "dict":
        target = like if isinstance(like, dict) else {}
        for key, child in zip(node.keys, node.children, strict=True):
            if not _absent(child, leaves):
                target[key] = fill(child, target.get(key), leaves)
        return target
    olds = list(like) if isinstance(like, list | tuple) else []
    olds += [None] * (len(node.children) - len(olds))
    news = [fill(child, old, leaves) for child, old in zip(node.children, olds, strict=False)]
    if node.kind == "list" and isinstance(like, list):
        like[:] = news
        return like
    return news if node.kind == "list" else tuple(news)


def renew(node: Node, like: Any, leaves: Mapping[str, Leaf]) -> Any:
    """A copy of `like` that is what was saved: its types stay (a Counter is one), keys that were not saved go.

    Leaves that are not in `leaves` stay as they are in `like`, which is left alone.
    """
    target = copy.deepcopy(like)
    _trim(node, target)
    return fill(node, target, leaves)


def is_known_tensor(obj: Any) -> bool:
    """Whether `obj` is of a type that `kind_of` knows already: a quick yes, and no answer else."""
    return type(obj) in _KINDS


def kind_of(obj: Any) -> TensorKind | None:
    """The kind of tensor that `obj` is, among the frameworks in use, or None."""
    known = _KINDS.get(type(obj))
    if known is not None:
        return known
    from safepoint.adapters import tensor_kinds  # late: the table of adapters lists the modules that import this one

    kind = next((kind for kind in tensor_kinds() if kind.is_tensor(obj)), None)
    if kind is not None:
        _KINDS[type(obj)] = kind
    return kind


def _numbers(obj: Any) -> tuple[str, Tensor] | None:
    """Kind and leaf of a long list that is one tensor, or None."""
    if type(obj) is not list or len(obj) < _LONG:
        return None
    for kind, (number, dtype) in NUMBERS.items():
        if all(type(item) is number for item in obj):
            try:
                array = np.array(obj, dtype)
            except OverflowError:  # an integer of more than 64 bits
                return None
            return kind, Tensor.of_bytes(bytes_of(array), TensorSpec(array.shape, array.dtype.name))
    return None


def _add(leaves: dict[str, Leaf], path: str, leaf: Leaf) -> None:
    if path in leaves:
        raise UnsupportedError(
            f"two leaves are called {path!r}",
            hint="keys of one dictionary must differ by more than their type, and not spell a path",
        )
    leaves[path] = leaf


def _fill_leaf(node: LeafRef, like: Any, leaves: Mapping[str, Leaf]) -> Any:
    if node.name not in leaves:
        return like
    leaf = leaves[node.name]
    if not isinstance(leaf, Tensor):
        return leaf
    if node.kind in NUMBERS:
        target = like if isinstance(like, list) else []
        target[:] = leaf.numpy().tolist()
        return target
    current = kind_of(like)
    if current is not None and not current.immutable:
        live = current.to_leaf(like)
        if live.spec == leaf.spec and live.write is not None:
            live.write(leaf.read())
            return like
    return (current or _kind_named(node.kind)).build(leaf)


def _trim(node: Node, like: Any) -> None:
    """Remove from dictionaries, at any depth, the keys that the skeleton does not have."""
    if isinstance(node, LeafRef):
        return
    if node.kind == "dict" and isinstance(like, dict):
        for key in [key for key in like if key not in node.keys]:
            del like[key]
        for key, child in zip(node.keys, node.children, strict=True):
            _trim(child, like.get(key))
    elif isinstance(like, list | tuple):
        for child, old in zip(node.children, like, strict=False):
            _trim(child, old)


def _to_leaf(kind: TensorKind, obj: Any, path: str) -> Tensor:
    try:
        return kind.to_leaf(obj)
    except UnsupportedError as error:
        message = f"{path or 'the object'!r} cannot be saved: {error.message}"
        raise UnsupportedError(message, expected=error.expected, found=error.found, hint=error.hint) from error


def _absent(node: Node, leaves: Mapping[str, Leaf]) -> bool:
    """Whether none of the leaves under `node` is there (a partial restore leaves them alone)."""
    if isinstance(node, LeafRef):
        return node.name not in leaves
    return bool(node.children) and all(_absent(child, leaves) for child in node.children)


def _kind_named(name: str) -> TensorKind:
    from safepoint.adapters import tensor_kinds

    kinds = {kind.kind: kind for kind in tensor_kinds()}
    return kinds.get(name) or kinds["numpy"]
