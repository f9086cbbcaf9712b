"""A stranger's nested dictionaries and lists as leaves by name: `model/encoder.weight`, `optimizer/state/0/step`."""

from __future__ import annotations

import itertools
from typing import Any

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.formats.pickles import Global, Pairs, Record
from safepoint.formats.plain_names import NumpyArray
from safepoint.tree import Branch, Leaf, LeafRef, Node, StateTree, Tensor, is_value, join_name

_MAX_DEPTH = 64
_MAX_LEAVES = 2_000_000
"""More than any model; a pickle of a kilobyte can name one list a billion times."""


def tree_of(content: Any, *, file: str) -> StateTree:
    """Leaves by name, a single one called "", and how they are put together.

    Raises:
        CorruptionError: two leaves have one name, or it is nested without end.
        UnsupportedError: something that is neither a tensor nor a plain value.
    """
    leaves: dict[str, Leaf] = {}
    visited = itertools.count(1)

    def walk(name: str, value: Any, depth: int) -> Node:
        if depth > _MAX_DEPTH or next(visited) > _MAX_LEAVES:
            raise CorruptionError(f"{file} is nested without end", file=file, expected=f"{_MAX_DEPTH} levels at most")
        if isinstance(value, NumpyArray):
            value = _array(value, name, file)
        elif isinstance(value, Record):
            value = value.state if isinstance(value.state, Pairs) else Pairs()
        if isinstance(value, Pairs):
            keys = [_key(key, file) for key, _ in value.pairs]
            exact = (key if is_value(key) else text for (key, _), text in zip(value.pairs, keys, strict=True))
            below = zip(keys, (child for _, child in value.pairs), strict=True)
            return Branch("dict", tuple(exact), tuple(walk(join_name(name, key), x, depth + 1) for key, x in below))
        if isinstance(value, list | tuple) and not isinstance(value, Global):
            children = (walk(join_name(name, str(index)), x, depth + 1) for index, x in enumerate(value))
            return Branch("list" if isinstance(value, list) else "tuple", (), tuple(children))
        _add(leaves, name, value, file)
        return LeafRef(name)

    skeleton = walk("", content, 0)
    return StateTree(leaves, skeleton)


def _array(value: NumpyArray, name: str, file: str) -> Tensor:
    try:
        return value.tensor()
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"{file} has an array at {name[:80]!r} that holds no plain numbers", found=error
        ) from error


def _add(leaves: dict[str, Leaf], name: str, value: Any, file: str) -> None:
    if name in leaves:
        raise CorruptionError(f"{file} has two things called {name[:80]!r}", file=file, name=name)
    if isinstance(value, Global):  # a dtype, such as torch.float16
        leaves[name] = str(value)
    elif isinstance(value, Tensor) or is_value(value):
        leaves[name] = value
    else:
        raise UnsupportedError(f"{file} has a {type(value).__name__} at {name[:80]!r}", expected="tensors and values")


def _key(key: Any, file: str) -> str:
    if isinstance(key, str) and key:
        return key
    if is_value(key) or (isinstance(key, tuple) and all(map(is_value, key))):
        return repr(key)[:200]
    raise UnsupportedError(f"{file} has a dictionary with a key of another kind", found=type(key).__name__)
