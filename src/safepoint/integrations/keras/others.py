"""The state of what trains beside the model: other callbacks, and the user's own dataset object.

Kept is what changed since `fit` began: settings stay those of the program that runs now (a patience that was raised),
and a counter comes back. Objects with `state_dict` and `load_state_dict` speak for themselves.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, final

import keras
import numpy as np
import xxhash

from safepoint.adapters.containers import kind_of
from safepoint.api.announce import logger
from safepoint.tree import bytes_of, is_value

_OWN = "state_dict"
_TAGS: dict[type, str] = {set: "python.set", frozenset: "python.frozenset", deque: "python.deque"}
_MAX_DEPTH = 32
# What Keras gives every callback, and what it derives from other attributes at the first use, in place.
_BASE = frozenset({"params", "_model", "model"})
_DERIVED: tuple[tuple[type, frozenset[str]], ...] = (
    (keras.callbacks.EarlyStopping.__mro__[1], frozenset({"monitor_op", "min_delta"})),
)
_INERT = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, keras.Layer)


@final
class Others:
    """Objects whose plain attributes are kept, by a name that another program gives the same objects."""

    def __init__(self, objects: Iterable[Any]) -> None:
        """Remember what the attributes are now, as `fit` begins."""
        self._objects = _named(objects)
        self._before = {name: _marks(obj) for name, obj in self._objects.items() if not _speaks(obj)}
        self._kept: dict[str, set[str]] = {name: set() for name in self._objects}
        self._told: set[str] = set()

    def capture(self) -> dict[str, dict[str, Any]]:
        """Name → attribute → value, of what changed since `fit` began."""
        return {name: state for name, obj in self._objects.items() if (state := self._state(name, obj))}

    def restore(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the attributes back; objects that are new, or gone, are left alone."""
        for name, state in saved.items():
            obj = self._objects.get(name)
            if obj is None:
                self._tell(name, "is not among the callbacks any more: what was saved of it is ignored")
            elif _OWN in state and _speaks(obj):
                obj.load_state_dict(state[_OWN])
            elif _OWN not in state and not _speaks(obj):
                self._kept[name] |= set(state)
                for attribute, value in state.items():
                    _set(obj, attribute, value)
            else:
                self._tell(name, "keeps its state in another way than when it was saved: it starts anew")

    def _state(self, name: str, obj: Any) -> dict[str, Any]:
        if _speaks(obj):
            return {_OWN: obj.state_dict()}
        before, state = self._before[name], {}
        for attribute, value in _attributes(obj).items():
            try:
                mark = _mark(value)
            except _NotPlain:
                if before.get(attribute) != id(value) and not isinstance(value, _INERT):
                    self._tell(f"{name}.{attribute}", f"cannot be kept: {type(value).__qualname__}; {_HINT}")
                continue
            if attribute in self._kept[name] or before.get(attribute) != mark:
                self._kept[name].add(attribute)
                state[attribute] = _plain(value)
        return state

    def _tell(self, name: str, words: str) -> None:
        if name not in self._told:
            self._told.add(name)
            logger.info("%s %s", name, words)


_HINT = "give its object state_dict() and load_state_dict() if a resumed run needs it"


class _NotPlain(Exception):  # noqa: N818 — it is an answer
    """A value is of a kind that a snapshot does not hold."""


def _named(objects: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for obj in objects:
        name = plain = type(obj).__qualname__.replace("/", "_")
        number = 1
        while name in named:
            number += 1
            name = f"{plain}.{number}"
        named[name] = obj
    return named


def _speaks(obj: Any) -> bool:
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))


def _attributes(obj: Any) -> dict[str, Any]:
    derived = next((names for kind, names in _DERIVED if isinstance(obj, kind)), frozenset())
    return {name: value for name, value in vars(obj).items() if name not in _BASE | derived}


def _marks(obj: Any) -> dict[str, Any]:
    marks = {}
    for name, value in _attributes(obj).items():
        try:
            marks[name] = _mark(value)
        except _NotPlain:
            marks[name] = id(value)
    return marks


def _mark(value: Any, depth: int = 0) -> Any:
    """Something small that differs when the value does."""
    if depth > _MAX_DEPTH:
        raise _NotPlain
    if is_value(value):
        return type(value).__name__, repr(value)
    if isinstance(value, Mapping):
        if not all(is_value(key) for key in value) or len({str(key) for key in value}) < len(value):
            raise _NotPlain
        return type(value).__name__, tuple((repr(k), _mark(v, depth + 1)) for k, v in value.items())
    if type(value) in {list, tuple, deque}:
        return type(value).__name__, tuple(_mark(item, depth + 1) for item in value)
    if type(value) in {set, frozenset}:
        return type(value).__name__, frozenset(_mark(item, depth + 1) for item in value)
    array = _array(value)
    return str(array.dtype), array.shape, xxhash.xxh3_128_digest(bytes_of(array).data)


def _array(value: Any) -> Any:
    """The content of a tensor that is a value: not of a variable, whose identity matters."""
    kind = kind_of(value)
    if kind is None or getattr(value, "requires_grad", False):
        raise _NotPlain
    if not (kind.immutable or isinstance(value, np.ndarray) or kind.kind == "torch"):
        raise _NotPlain
    return kind.to_leaf(value).numpy()


def _plain(value: Any) -> Any:
    """The value in dictionaries, lists and tuples; arrays as they are: a save copies them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in _TAGS:
        return {_TAGS[type(value)]: [_plain(item) for item in value], "maxlen": getattr(value, "maxlen", None)}
    if type(value) in {list, tuple}:
        return type(value)(_plain(item) for item in value)
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        kind = next((kind for kind, tag in _TAGS.items() if set(value) == {tag, "maxlen"}), None)
        if kind is None:
            return {key: _unplain(item) for key, item in value.items()}
        items = [_unplain(item) for item in value[_TAGS[kind]]]
        return deque(items, value["maxlen"]) if kind is deque else kind(items)
    if type(value) in {list, tuple}:
        return type(value)(_unplain(item) for item in value)
    return value


def _set(obj: Any, attribute: str, value: Any) -> None:
    """A dictionary in place: the one that is there knows its type (a Counter), and others may refer to it."""
    value, live = _unplain(value), getattr(obj, attribute, None)
    if isinstance(value, dict) and isinstance(live, dict):
        live.clear()
        live.update(value)
    else:
        setattr(obj, attribute, value)
