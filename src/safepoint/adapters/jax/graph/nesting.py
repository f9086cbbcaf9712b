"""Nested arguments and results as JSON: lists, tuples, dictionaries and leaves. No type is ever named.

Invariant: what comes back holds only Python's own containers; a named tuple comes back as a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from safepoint.errors import UnsupportedError
from safepoint.tree import join_name

MAX_DEPTH = 16


def encode(value: Any, leaf: Callable[[str, Any], Any], path: str) -> Any:
    """The tree of a value; `leaf(path, value)` gives the JSON of everything that is no container.

    Raises:
        UnsupportedError: nested too deep, or a dictionary whose keys are neither texts nor numbers.
    """
    if path.count("/") > MAX_DEPTH:
        raise UnsupportedError(f"{path} is nested too deep")
    if isinstance(value, tuple | list) and (type(value) in {tuple, list} or hasattr(value, "_fields")):
        items = [encode(item, leaf, join_name(path, str(index))) for index, item in enumerate(value)]
        return {"list" if type(value) is list else "tuple": items}
    if isinstance(value, Mapping):
        if not all(type(key) in {str, int} for key in value):
            raise UnsupportedError(f"{path} is a dictionary whose keys are neither texts nor whole numbers")
        return {"dict": [[key, encode(item, leaf, join_name(path, str(key)))] for key, item in value.items()]}
    return leaf(path, value)


def decode(tree: Any, leaf: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of a tree; `leaf` gives what a leaf stands for.

    Raises:
        ValueError: nothing that `encode` writes.
    """
    if depth > MAX_DEPTH + 1:
        raise ValueError("it is nested too deep")
    if isinstance(tree, dict) and len(tree) == 1:
        ((kind, content),) = tree.items()
        if kind in ("list", "tuple") and isinstance(content, list):
            items = [decode(item, leaf, depth + 1) for item in content]
            return items if kind == "list" else tuple(items)
        if kind == "dict" and isinstance(content, list):
            good = all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in {str, int} for pair in content)
            if not good or len({pair[0] for pair in content}) != len(content):
                raise ValueError("a dictionary has no pairs")
            return {key: decode(item, leaf, depth + 1) for key, item in content}
    return leaf(tree)


def leaves(value: Any) -> Iterator[Any]:
    """The leaves of a decoded tree, in order."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value
