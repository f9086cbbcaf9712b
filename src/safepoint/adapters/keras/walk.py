"""The parts of a Keras object by structural name: `layers/dense`, the words of Keras' own weights files.

Invariant: names come from attributes, classes and positions, never from `layer.name`, so that building a model twice
in one process gives the same names twice. Reading is all the walk does.
Source: `keras.src.saving.saving_lib` (3.15), `_walk_saveable`, `_save_state`, `_save_container_state`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.saving.keras_saveable import KerasSaveable

from safepoint.tree import join_name

# What holds no state that a resumed run needs: metrics start again with each epoch, features hold no weights.
_WITHOUT_STATE = frozenset({"Metric", "Feature", "Cross"})


def parts_of(root: Any) -> dict[str, Any]:
    """Structural name → layer, model, optimizer or operation, the root itself under "", each once.

    The order is Keras': the layers of a model first, then attributes by name, private ones last.
    """
    found: dict[str, Any] = {}
    _visit(root, "", found, set())
    return found


def _visit(part: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    if id(part) in seen or _type_of(part) in _WITHOUT_STATE:
        return
    seen.add(id(part))
    found[path] = part
    if isinstance(part, keras.optimizers.Optimizer):
        return  # named by its owners, not by its attributes
    for name, child in _children(part):
        if isinstance(child, KerasSaveable):
            _visit(child, join_name(path, name), found, seen)
        elif isinstance(child, list | dict | tuple):
            _visit_container(child, join_name(path, name), found, seen, set())


def _visit_container(container: Any, path: str, found: dict[str, Any], seen: set[int], outer: set[int]) -> None:
    if id(container) in outer:
        return
    outer.add(id(container))
    used: dict[str, int] = {}
    for child in list(container.values()) if isinstance(container, dict) else container:
        if isinstance(child, KerasSaveable):
            name = _unique(snake_case(type(child).__name__), used)
            _visit(child, join_name(path, name), found, seen)
        elif isinstance(child, list | dict | tuple):
            _visit_container(child, join_name(path, _unique("container", used)), found, seen, outer)


def _children(part: Any) -> Iterator[tuple[str, Any]]:
    kind = _type_of(part)
    if kind in {"Sequential", "Functional"}:
        yield "layers", part.layers
    skipped = _skipped(kind)
    for name in sorted(dir(part), key=lambda n: f"~{n}" if n.startswith("_") else n):
        if name.startswith("__") or name in skipped:
            continue
        try:
            child = getattr(part, name)
        except Exception:  # noqa: BLE001, S112  # a property that cannot be read now: Keras passes over it too
            continue
        yield name, child


def _type_of(part: Any) -> str:
    return str(part._obj_type())


@cache
def _skipped(kind: str) -> frozenset[str]:
    """Attributes that every object of a kind has: what Keras itself keeps there is reached on other ways."""
    with undisturbed():
        references = {"Loss": keras.losses.Loss, "Operation": keras.Operation}
        skipped = {*dir(references.get(kind, keras.Layer)()), "_self_unconditional_dependency_names"}
    if kind == "Functional":
        skipped |= {"operations", "_operations"}
    if kind == "Sequential":
        skipped |= {"_functional"}
    return frozenset(skipped)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Create Keras objects and leave no trace: automatic names and Python's random state go on as if nothing was."""
    counters = global_state.get_global_attribute("object_name_uids")
    before, state = None if counters is None else dict(counters), random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
        counters = global_state.get_global_attribute("object_name_uids")
        if counters is not None:
            counters.clear()
            counters.update(before or {})


def _unique(name: str, used: dict[str, int]) -> str:
    if name in used:
        used[name] += 1
        return f"{name}_{used[name]}"
    used[name] = 0
    return name


def snake_case(name: str) -> str:
    """`BatchNormalization` → `batch_normalization`, letter by letter as Keras does it."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
