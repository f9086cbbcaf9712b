"""Tracked objects: what a checkpoint's names stand for, expanded so that each framework object has its own name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, final

from safepoint.adapters import Adapter, Scope, find
from safepoint.adapters.containers import MAX_DEPTH, is_known_tensor, kind_of
from safepoint.errors import UnsupportedError
from safepoint.tree import StateTree, check_name, is_value, join_name

RANDOM = "random"
"""The name under which a manager keeps random state."""

RESERVED = frozenset({RANDOM, "ranks"})
"""Names that managers keep their own state under."""

_ARGUMENTS = frozenset({"directory", "step", "metrics", "force", "tags", "progress"})


def check_tracked(name: str, obj: Any) -> None:
    """Refuse, at construction, what could never be saved.

    Raises:
        UnsupportedError: a bare value, the reserved name, or an object that no adapter captures; named by its path.
    """
    if name in RESERVED:
        raise UnsupportedError(f"{name!r} is kept for the state of managers", hint="track it under another name: rng=")
    if not check_name(name):
        raise UnsupportedError("an object needs a name to be tracked under", expected="a word, such as model=")
    kind = None if is_value(obj) else kind_of(obj)
    scalar = kind is not None and kind.kind == "numpy.scalar"
    if is_value(obj) or scalar or (type(obj) is tuple and not any(True for _ in _tensors(obj))):
        raise UnsupportedError(
            f"{name}={obj!r} cannot be tracked: a plain {type(obj).__name__} cannot be restored in place",
            hint=f'put it in a dict you track: {name}={{"value": ...}}',
        )
    for path, child in expand(name, obj):
        adapter = find(child)
        if adapter is None:
            raise UnsupportedError(
                f"{path} cannot be captured: {type(child).__module__}.{type(child).__qualname__}",
                expected="a model, optimizer, generator, dict or list of arrays, or an object with state_dict and "
                "load_state_dict",
                hint="give it state_dict() and load_state_dict(), or put its values in a dict you track",
            )
        refuse = getattr(adapter, "refuse", None)
        if refuse is not None:
            refuse(child)
        if name in _ARGUMENTS and is_immutable(child):
            raise UnsupportedError(
                f"{name!r} is an argument of save(), which this tree must be passed to by name",
                hint="track it under another name",
            )
        if adapter.__name__.endswith(".plain"):  # type: ignore[attr-defined]  # adapters are modules
            capture_one(path, child, scope_of(dict(expand(name, obj))))


def expand(name: str, obj: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The object itself and, inside dictionaries and lists, every object with an adapter of its own, by its path."""
    yield name, obj
    if depth > MAX_DEPTH or not _is_container(obj):
        return
    for key, child in _children(obj):
        if is_known_tensor(child):  # nearly always, and quick
            continue
        if _is_container(child):
            inner = expand(join_name(name, key), child, depth + 1)
            next(inner)  # the container's own leaves are its parent's
            yield from inner
        elif not is_value(child) and kind_of(child) is None and find(child) is not None:
            yield join_name(name, key), child


def expand_all(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Every tracked object by its full name."""
    return {path: child for name, obj in objects.items() for path, child in expand(name, obj)}


def scope_of(objects: Mapping[str, Any]) -> Scope:
    """What adapters may know: who owns which parameter, and what has a name of its own."""
    separate = (id(obj) for obj in objects.values() if not _is_container(obj))
    return Scope(_Owners(objects), frozenset(separate))


@final
class _Owners(Mapping[int, str]):
    """`Scope.owners`, worked out when an adapter first asks: those of optimizers do, others need not wait for it."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    @cached_property
    def _names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for name, obj in self._objects.items():
            adapter = find(obj)
            for relative, parameter in () if adapter is None else adapter.owners(obj):
                names.setdefault(id(parameter), join_name(name, relative))
        return names

    def __getitem__(self, parameter: int) -> str:
        return self._names[parameter]

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def adapter_of(name: str, obj: Any) -> Adapter:
    """The adapter of a tracked object.

    Raises:
        UnsupportedError: there is none.
    """
    adapter = find(obj)
    if adapter is None:
        raise UnsupportedError(f"{name} cannot be captured: {type(obj).__module__}.{type(obj).__qualname__}")
    return adapter


def capture_one(name: str, obj: Any, scope: Scope) -> StateTree:
    """The live tree of one tracked object; errors name it.

    Raises:
        UnsupportedError: something in it cannot be captured.
    """
    try:
        return adapter_of(name, obj).to_tree(obj, scope)
    except UnsupportedError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise UnsupportedError(message, expected=error.expected, found=error.found, hint=error.hint) from error


def is_immutable(obj: Any) -> bool:
    """Whether restoring must make a new value (JAX trees, frozen tensors): such objects are passed at each save."""
    adapter = find(obj)
    immutable = getattr(adapter, "immutable", None)
    if immutable is not None:
        return bool(immutable(obj))
    kinds = (kind_of(leaf) for leaf in _tensors(obj))
    return any(kind is not None and kind.immutable and kind.kind != "numpy.scalar" for kind in kinds)


def _is_container(obj: Any) -> bool:
    """Whether the objects inside `obj` have names of their own; a JAX tree is one object."""
    if not isinstance(obj, dict) and type(obj) not in {list, tuple}:
        return False
    immutable = getattr(find(obj), "immutable", None)
    return immutable is None or not immutable(obj)


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        yield from ((str(key), child) for key, child in obj.items())
    elif type(obj) in {list, tuple}:
        yield from ((str(index), child) for index, child in enumerate(obj))


def _tensors(obj: Any, depth: int = 0) -> Iterator[Any]:
    if _is_container(obj):
        if depth > MAX_DEPTH:
            return
        for _, child in _children(obj):
            yield from _tensors(child, depth + 1)
    elif not is_value(obj):
        yield obj
