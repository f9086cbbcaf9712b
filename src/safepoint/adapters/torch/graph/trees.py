"""Nested arguments and results as JSON: lists, tuples, dictionaries and records of leaves. No type is ever named.

Invariant: what comes back holds only Python's own containers and `Record`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, final

from safepoint.errors import UnsupportedError

MAX_DEPTH = 16


@final
class Record(dict[str, Any]):
    """A result with named fields, of a class that need not exist here: `out["logits"]`, `out.logits` and `out[0]`."""

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return super().__getitem__(name)


def encode(value: Any, leaf: Callable[[Any], Any], what: str, depth: int = 0) -> Any:
    """The tree of a value; `leaf` gives the JSON of everything that is no container.

    Raises:
        UnsupportedError: a container of another kind.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"the {what} are nested too deep")
    if type(value) in {list, tuple}:
        return {type(value).__name__: [encode(item, leaf, what, depth + 1) for item in value]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"record": [[n, encode(v, leaf, what, depth + 1)] for n, v in zip(value._fields, value, strict=True)]}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UnsupportedError(f"the {what} have a dictionary whose keys are no texts")
        kind = "dict" if type(value) in {dict, OrderedDict} else "record"
        return {kind: [[key, encode(item, leaf, what, depth + 1)] for key, item in value.items()]}
    return leaf(value)


def decode(tree: Any, leaf: Callable[[Any], Any], depth: int = 0) -> Any:
    """The value of a tree; `leaf` gives what a leaf stands for.

    Raises:
        ValueError: nothing that `encode` writes.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deep")
    if isinstance(tree, dict) and len(tree) == 1:
        ((kind, content),) = tree.items()
        if kind in ("list", "tuple") and isinstance(content, list):
            items = [decode(item, leaf, depth + 1) for item in content]
            return items if kind == "list" else tuple(items)
        if kind in ("dict", "record") and isinstance(content, list):
            if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in content):
                raise ValueError("a dictionary has no pairs")
            pairs = {key: decode(item, leaf, depth + 1) for key, item in content}
            return pairs if kind == "dict" else Record(pairs)
    return leaf(tree)
