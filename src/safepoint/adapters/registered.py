"""What the program registered with `@safepoint.register`: names that a file may use for its classes and functions.

Invariant: only the program adds entries, by running the decorator; nothing here imports a framework or a module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from safepoint.adapters.constructed import keep_arguments
from safepoint.errors import ExistsError, UnsupportedError

_T = TypeVar("_T", bound=Callable[..., Any])

_BY_NAME: dict[str, Any] = {}


@overload
def register(obj: _T, /) -> _T: ...
@overload
def register(obj: str | None = None, /) -> Callable[[_T], _T]: ...


def register(obj: Any = None, /) -> Any:
    """Allow files to name this class or function; `load_model` then builds it without being told again.

    Use it bare (`@safepoint.register`: the name is module and qualified name) or with a name that stays the same when
    the class moves (`@safepoint.register("my_project.Attention")`). Running a definition again, as notebooks do,
    replaces it. Instances of a `torch.nn.Module` class keep the arguments of their constructor from then on, which is
    how `save_model` knows what makes them again.

    Raises:
        ExistsError: another class already has that name.
        UnsupportedError: the object is neither a class nor a named function.
    """
    if obj is None or isinstance(obj, str):
        return lambda target: _add(target, obj)
    return _add(obj, None)


def registered() -> dict[str, Any]:
    """Every registered object by its name."""
    return dict(_BY_NAME)


def qualified_name(obj: Any) -> str:
    """`module.qualified_name` of a class or function."""
    return f"{obj.__module__}.{obj.__qualname__}"


def _add(obj: Any, name: str | None) -> Any:
    if not callable(obj) or not hasattr(obj, "__qualname__") or obj.__name__ == "<lambda>":
        raise UnsupportedError(f"{obj!r} cannot be registered", expected="a class or a function with a name")
    key = name or qualified_name(obj)
    other = _BY_NAME.get(key)
    if other is not None and qualified_name(other) != qualified_name(obj):
        raise ExistsError(
            f"{key!r} is already the name of {qualified_name(other)}",
            hint=f'give {qualified_name(obj)} a name of its own: @safepoint.register("...")',
        )
    _BY_NAME[key] = obj
    if isinstance(obj, type):
        keep_arguments(obj)
    return obj
