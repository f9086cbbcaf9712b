"""Adapters: live objects ↔ state trees, one module a framework, imported only when its framework already is.

Invariant: adapters do not know each other. What they share is `protocol`; what finds them is `find`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any, cast

from safepoint.adapters.protocol import (
    Adapter,
    LoadRequest,
    Processes,
    RandomState,
    SaveRequest,
    Scope,
    TensorKind,
    WholeModels,
)
from safepoint.errors import UnsupportedError

# Order matters: the first that handles an object takes it. The framework named must be imported for an object of
# it to exist, so looking into sys.modules is enough and nothing is ever imported just to ask.
_ADAPTERS = (
    ("safepoint.adapters.keras", "keras"),
    ("safepoint.adapters.tensorflow", "tensorflow"),
    ("safepoint.adapters.torch", "torch"),
    ("safepoint.adapters.jax", "jax"),
    ("safepoint.adapters.numpy", "numpy"),
    ("safepoint.adapters.state_dict", None),
    ("safepoint.adapters.plain", None),
)

# What a whole-model file calls its format → what the framework is called, and the module that knows its models.
_WHOLE_MODELS = {
    "keras": ("Keras", "safepoint.adapters.keras.whole_model.model"),
    "pt": ("PyTorch", "safepoint.adapters.torch.whole_model.model"),
    "jax": ("JAX", "safepoint.adapters.jax.whole_model.model"),
}
_INSTALL = {
    "keras": 'install it with a backend: pip install "safepoint[keras,tensorflow]"',
    "pt": 'pip install "safepoint[torch]"',
    "jax": 'pip install "safepoint[jax]"',
}


def loaded() -> Iterator[Adapter]:
    """The adapters whose frameworks this program uses, most specific first."""
    for module, framework in _ADAPTERS:
        if framework is None or framework in sys.modules:
            yield cast("Adapter", sys.modules.get(module) or importlib.import_module(module))


def find(obj: Any) -> Adapter | None:
    """The adapter that captures `obj`, or None."""
    return next((adapter for adapter in loaded() if adapter.handles(obj)), None)


def tensor_kinds() -> list[TensorKind]:
    """How tensors of the frameworks in use are told, captured and built inside plain trees."""
    return [kind for adapter in loaded() for kind in getattr(adapter, "TENSOR_KINDS", ())]


def random_states() -> dict[str, RandomState]:
    """The global random states of the frameworks in use, by name: `python`, `numpy`, `torch`, ..."""
    return {state.name: state for adapter in loaded() for state in getattr(adapter, "RANDOM_STATES", ())}


def processes() -> Processes | None:
    """How this process talks to those that train with it, or None where no framework that distributes is in use."""
    if "torch" not in sys.modules:
        return None
    return cast("Processes", importlib.import_module("safepoint.adapters.torch.ranks"))


def format_of(model: Any) -> str | None:
    """The format of a whole-model file for this model, or None: no framework in use keeps such models whole."""
    known: Iterator[Any] = (adapter for adapter in loaded() if hasattr(adapter, "is_model"))
    return next((str(adapter.FORMAT) for adapter in known if adapter.is_model(model)), None)


def framework_of(format: str) -> str:  # noqa: A002 — the word of the file
    """What the framework of a whole-model file of a format is called; the format itself where it is not known."""
    return _WHOLE_MODELS[format][0] if format in _WHOLE_MODELS else format


def whole_models(format: str, *, where: str = "the file") -> WholeModels | None:  # noqa: A002 — the word of the file
    """The module that knows whole models of a format; imports its framework. None: no such format is known.

    Raises:
        UnsupportedError: the framework cannot be imported.
    """
    if format not in _WHOLE_MODELS:
        return None
    framework, module = _WHOLE_MODELS[format]
    try:
        return cast("WholeModels", importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{where} holds a {framework} model, and {error.name} cannot be imported",
            found=error,
            hint=_INSTALL[format],
        ) from error


__all__ = [
    "Adapter",
    "LoadRequest",
    "Processes",
    "RandomState",
    "SaveRequest",
    "Scope",
    "TensorKind",
    "WholeModels",
    "find",
    "format_of",
    "framework_of",
    "loaded",
    "processes",
    "random_states",
    "tensor_kinds",
    "whole_models",
]
