"""Constructor arguments, kept on the instances of registered classes whose framework keeps no configuration.

Invariant: a class behaves as before: its signature, copying and pickling; what is kept are the arguments as they were
passed, before the constructor could change them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, final

_KEPT = "_safepoint_arguments"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# By name, so that no framework is imported. Keras' classes have get_config(), Linen's and Equinox' fields.
_BASES = frozenset({"torch.nn.modules.module.Module", "flax.nnx.module.Module"})
# NNX takes every attribute for a part of the module: what its modules were made with is kept beside them, by identity.
_BESIDE = "flax.nnx.module.Module"
_KEPT_BESIDE: dict[int, tuple[weakref.ref[Any], Arguments]] = {}


def keep_arguments(cls: type) -> None:
    """Have instances made from now on keep the arguments of their constructor, where that is of use."""
    own = vars(cls).get("__init__")
    bases = {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__}
    if not _BASES & bases or hasattr(own, _KEPT):
        return
    original: Callable[..., None] = cls.__init__  # type: ignore[misc]  # inherited or not
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 — the name it has in tracebacks
        if type(self) is cls:  # else a subclass, whose own arguments are the ones that make it
            kept = _arguments(signature, args, kwargs)
            if _BESIDE in bases:
                _keep_beside(self, kept)
            else:
                vars(self)[_KEPT] = kept
        original(self, *args, **kwargs)

    setattr(__init__, _KEPT, True)
    cls.__init__ = __init__  # type: ignore[misc]


def arguments_of(obj: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and keyword arguments that an instance was made with; None where they were not kept."""
    beside = _KEPT_BESIDE.get(id(obj))
    kept = beside[1] if beside is not None and beside[0]() is obj else vars(obj).get(_KEPT)
    return (kept.positional, kept.keywords) if isinstance(kept, Arguments) else None


@final
class Arguments:
    """What a constructor was called with. A deep copy of a model has a deep copy of it; a pickle only plain values."""

    __slots__ = ("keywords", "positional")

    def __init__(self, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.positional = positional
        self.keywords = keywords

    def __deepcopy__(self, memo: dict[int, Any]) -> Arguments:
        positional = tuple(_deepcopy(value, memo) for value in self.positional)
        return Arguments(positional, {name: _deepcopy(value, memo) for name, value in self.keywords.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        """Arguments may be what no pickle takes, where the model itself is fine: then they are forgotten."""
        plain = all(_is_plain(value) for value in (*self.positional, *self.keywords.values()))
        return (Arguments, (self.positional, self.keywords)) if plain else (type(None), ())


def _keep_beside(obj: Any, kept: Arguments) -> None:
    number = id(obj)

    def forget(gone: weakref.ref[Any]) -> None:
        if _KEPT_BESIDE.get(number, (None,))[0] is gone:  # else another object has that place by now
            del _KEPT_BESIDE[number]

    _KEPT_BESIDE[number] = (weakref.ref(obj, forget), kept)


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """By name where a name will do, so that a later version of the class may add parameters anywhere."""
    plain = _copied(kwargs)
    names = list(signature.parameters.values())[1:]
    if len(args) > len(names) or any(p.kind in {p.POSITIONAL_ONLY, p.VAR_POSITIONAL} for p in names):
        return Arguments(_copied(args), plain)
    named = dict(zip((p.name for p in names), _copied(args), strict=False))
    return Arguments((), {**named, **plain})


def _copied(value: Any) -> Any:
    """The same value in containers of its own: constructors change the lists they are given."""
    if type(value) in {list, tuple, set}:
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def _deepcopy(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 — whatever it raises, it must not keep the model from being copied
        return value


def _is_plain(value: Any) -> bool:
    if type(value) in {list, tuple, set}:
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return type(value) in _PLAIN
