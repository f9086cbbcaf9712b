"""How a model of each style is called, and which arrays are its own: what `graph.trace` and `take_apart` need to know.

Invariant: flax and equinox are looked up in `sys.modules`; a model of theirs can only exist where they are loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from safepoint.adapters.jax import nnx as nnx_objects
from safepoint.adapters.jax import trees
from safepoint.adapters.jax.graph.inputs import is_array
from safepoint.adapters.jax.graph.trace import Subject
from safepoint.adapters.protocol import Scope
from safepoint.errors import UnsupportedError

Name = Literal["nnx", "linen", "equinox", "function"]


@final
@dataclass(frozen=True, slots=True)
class Style:
    """A model, sorted.

    Attributes:
        name: of the style.
        state: what holds its arrays: itself, or what is passed as `params=`.
        subject: how JAX calls it.
    """

    name: Name
    state: Any
    subject: Subject


def name_of(model: Any) -> Name | None:
    """The style of a model, or None: it is none of JAX's."""
    nnx, linen, equinox = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "equinox"))
    if nnx is not None and isinstance(model, nnx.Module):
        return "nnx"
    if linen is not None and isinstance(model, linen.Module):
        return "linen"
    if equinox is not None and isinstance(model, equinox.Module) and not _is_wrapper(model):
        return "equinox"
    return "function" if callable(model) and not isinstance(model, type) else None


def style_of(model: Any, params: Any) -> Style:
    """Sort a model.

    Raises:
        UnsupportedError: its parameters were not passed, or were passed and are its own.
    """
    name = name_of(model)
    assert name is not None
    own = name in {"nnx", "equinox"}
    if own and params is not None:
        raise UnsupportedError(
            f"{type(model).__name__} has its parameters inside, and params= were passed too", hint="leave params= out"
        )
    if not own and params is None:
        what = f"{type(model).__name__}, a Linen module," if name == "linen" else _spell(model)
        raise UnsupportedError(
            f"{what} does not hold its parameters",
            hint="safepoint.save_model(model, path, params=variables, example_inputs=(x,))"
            if name == "linen"
            else "safepoint.save_model(function, path, params=params, example_inputs=(x,)) calls function(params, x)",
        )
    if not own and (params is None or trees.level(params) is None):
        raise UnsupportedError("params= is a single leaf, which has no name", hint='put it in a dictionary: {"w": w}')
    make = {"nnx": _nnx, "linen": _linen, "equinox": _equinox, "function": _function}[name]
    return Style(name, model if own else params, make(model, params))


def _nnx(model: Any, _params: Any) -> Subject:
    nnx = sys.modules["flax.nnx"]

    def call(given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On a copy: modes, counts and statistics that a call changes are the copy's."""
        copy = nnx.clone(model)
        nnx_objects.update(copy, given.get, Scope())
        copy.eval()
        return copy(*args, **kwargs)

    arrays = {name: leaf for name, leaf in nnx_objects.leaves(model, Scope()) if is_array(leaf)}
    return Subject(arrays, call, _signature(type(model).__call__, own=1))


def _linen(model: Any, params: Any) -> Subject:
    def call(given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return model.apply(_filled(params, given), *args, **kwargs)

    return Subject(_arrays(params), call, _signature(type(model).__call__, own=1))


def _equinox(model: Any, _params: Any) -> Subject:
    equinox = sys.modules["equinox"]

    def call(given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return equinox.nn.inference_mode(_filled(model, given))(*args, **kwargs)

    return Subject(_arrays(model), call, _signature(type(model).__call__, own=1), mapped=True)


def _function(model: Any, params: Any) -> Subject:
    def call(given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return model(_filled(params, given), *args, **kwargs)

    return Subject(_arrays(params), call, _signature(model, own=1))


def _arrays(state: Any) -> dict[str, Any]:
    return {name: leaf for name, leaf in trees.walk(state) if is_array(leaf)}


def _filled(state: Any, given: Mapping[str, Any]) -> Any:
    return trees.rebuild(state, given.get)


def _signature(function: Any, *, own: int) -> inspect.Signature | None:
    """Of a call, without its first `own` parameters; None where Python does not know it, or it takes any number."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[own:]
    except (TypeError, ValueError):
        return None
    if any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters):
        return None
    return inspect.Signature(parameters)


def _is_wrapper(model: Any) -> bool:
    """What `eqx.filter_jit`, `filter_vmap` and the like make: functions that are modules too."""
    return type(model).__module__.partition(".")[0] == "equinox" and not type(model).__module__.startswith("equinox.nn")


def _spell(model: Any) -> str:
    return f"the function {getattr(model, '__name__', type(model).__name__)}"
