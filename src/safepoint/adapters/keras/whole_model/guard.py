"""The choke point: while a model is built in this thread, Keras looks names up here and nowhere else.

Invariant: the replaced functions pass every other thread and every other time through to Keras' own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from keras.src.legacy.saving import saving_utils
from keras.src.saving import serialization_lib
from keras.src.utils import python_utils

from safepoint.adapters.keras.patches import Patch, patched
from safepoint.adapters.keras.whole_model.allowed import Names
from safepoint.errors import UnsupportedError, UntrustedError

_active = threading.local()


@final
class Guard:
    """What was refused during one build: Keras turns exceptions into others, and swallows some."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._refusal: UntrustedError | None = None

    def resolve(self, name: str, registered_name: str | None, module: str | None, *, is_function: bool) -> Any:
        try:
            return self.names.resolve(name, registered_name, module, is_function=is_function)
        except UntrustedError as error:
            self._refusal = self._refusal or error
            raise

    def refuse(self, what: str) -> None:
        error = UntrustedError(
            f"{self.names.where} holds {what}; nothing was run",
            expected="names of classes and functions",
            hint="replace it by a class or function with @safepoint.register and save the model again",
        )
        self._refusal = self._refusal or error
        raise error

    def raise_refusal(self) -> None:
        """Raise what was refused, if anything was."""
        if self._refusal is not None:
            raise self._refusal


@contextmanager
def guarded(names: Names) -> Iterator[Guard]:
    """Within: whatever Keras deserializes in this thread is resolved by `names`, and no byte code is loaded.

    Raises:
        UnsupportedError: this Keras looks names up in another way, which nothing here guards.
    """
    guard = Guard(names)
    outer = getattr(_active, "guard", None)
    with patched(_PATCHES, missing=_unknown_keras):
        _active.guard = guard
        try:
            yield guard
        finally:
            _active.guard = outer


@contextmanager
def without_code() -> Iterator[None]:
    """Within: whatever Keras serializes in this thread, a lambda's byte code is refused instead of dumped.

    Raises:
        UnsupportedError: there is a lambda.
    """
    with patched(_DUMPS, missing=_unknown_keras):
        _active.saving = True
        try:
            yield
        finally:
            _active.saving = False


def _refuse_to_dump(original: Callable[..., Any]) -> Callable[..., Any]:
    def dump(func: Any) -> Any:
        if getattr(_active, "saving", False):
            code = getattr(func, "__code__", None)
            raise UnsupportedError(
                "the model holds a lambda, and no file keeps code",
                found=None if code is None else f"{code.co_filename}, line {code.co_firstlineno}",
                hint="give it a name with def, and decorate it with @safepoint.register",
            )
        return original(func)

    return dump


def _unknown_keras(what: str) -> None:
    raise UnsupportedError(
        f"this version of Keras has no {what}: safepoint does not know how it looks names up, and will not guess",
        hint="update safepoint, or use a version of Keras that it was tested with",
    )


def _retrieve(original: Callable[..., Any]) -> Callable[..., Any]:
    def retrieve(  # Keras' own signature
        name: str,
        registered_name: str | None,
        module: str | None,
        obj_type: str,
        full_config: Any,
        custom_objects: Any = None,
    ) -> Any:
        guard: Guard | None = getattr(_active, "guard", None)
        if guard is None:
            return original(name, registered_name, module, obj_type, full_config, custom_objects)
        return guard.resolve(name, registered_name, module, is_function=obj_type == "function")

    return retrieve


def _refusing(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            guard: Guard | None = getattr(_active, "guard", None)
            if guard is not None:
                guard.refuse(what)
            return original(*args, **kwargs)

        return refuse

    return wrap


_DUMPS = (Patch(python_utils, "func_dump", _refuse_to_dump),)
_PATCHES = (
    Patch(serialization_lib, "_retrieve_class_or_fn", _retrieve),
    Patch(python_utils, "func_load", _refusing("byte code")),
    Patch(saving_utils, "model_from_config", _refusing("a layer in a format that was never written to such files")),
)
