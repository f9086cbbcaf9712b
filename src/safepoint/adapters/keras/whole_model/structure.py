"""The structure of a Keras model: its configuration out, and a model built again from one, on any backend.

Invariant: while a model is built, every name that Keras wants to look up goes through `Names.resolve`, whether the walk
saw it or not; Keras' own look-up, which can import, and its byte-code loader are out of reach.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.saving import object_registration, serialization_lib

from safepoint.adapters.keras.placeholders import placeholders
from safepoint.adapters.keras.whole_model.allowed import Names, denied, published
from safepoint.adapters.keras.whole_model.check import MAX_DEPTH, check, too_large
from safepoint.adapters.keras.whole_model.guard import guarded, without_code
from safepoint.adapters.registered import registered
from safepoint.adapters.structures import check_version
from safepoint.errors import CorruptionError, SafepointError, UnsupportedError

KIND = "keras"
VERSION = 1
_LOOKUPS = frozenset({"StringLookup", "IntegerLookup", "TextVectorization"})
_VALUE_CLASSES = frozenset({"DTypePolicy", "QuantizedDTypePolicy", "QuantizedFloat8DTypePolicy"})
_NON_FINITE = "__float__"


def describe(model: Any) -> dict[str, Any]:
    """The structure of a built model as plain JSON: configuration, compile and build configuration, versions.

    Raises:
        UnsupportedError: the model is not built, or holds code (a Lambda layer, a lambda as loss) that no file keeps.
    """
    _register()
    _refuse_what_cannot_be_kept(model)
    with serialization_lib.ObjectSharingScope(), warnings.catch_warnings(), without_code():
        warnings.simplefilter("ignore")  # that a lambda is unsafe: it is refused
        try:
            config = serialization_lib.serialize_keras_object(model)
        except (TypeError, ValueError, NotImplementedError, OSError) as error:
            raise UnsupportedError(
                f"the configuration of {type(model).__name__} {model.name!r} cannot be written down",
                found=f"{type(error).__name__}: {_first_line(error)}",
                hint="give the class a get_config() that returns the arguments of its constructor",
            ) from error
    return {
        "kind": KIND,
        "version": VERSION,
        "keras_version": keras.__version__,
        "backend": keras.backend.backend(),
        "config": _plain(config, "config", {}),
    }


def build(
    structure: Mapping[str, Any],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    where: str = "the file",
    checked: Callable[[], object] | None = None,
) -> Any:
    """The model that `describe` described: built, compiled if it was, its weights not yet those of the file.

    Large variables hold zeros without memory of their own until `adopt` or an assignment gives them their content.
    `checked` is called once every name was allowed, before anything is built.

    Raises:
        UntrustedError: the structure names something nobody allowed, or holds code; nothing was run.
        UnsupportedError: a newer version's structure, or a model that cannot be built again.
        CorruptionError: no structure at all.
    """
    config = _config_of(structure, where)
    _register()
    names = Names(dict(custom_objects or {}), tuple(trust), where)
    check(config, names)
    if checked is not None:
        checked()
    with guarded(names) as guard, placeholders(), _quiet():
        try:
            with serialization_lib.ObjectSharingScope():
                model = serialization_lib.deserialize_keras_object(
                    config, custom_objects=names.custom_objects, safe_mode=True
                )
        except SafepointError:
            raise
        except Exception as error:  # whatever a class's constructor raises for a wrong argument
            guard.raise_refusal()
            raise UnsupportedError(
                f"the model in {where} cannot be built again",
                found=f"{type(error).__name__}: {_first_line(error)}",
                hint=f"it was saved with Keras {structure.get('keras_version')} and this is {keras.__version__}; "
                "custom classes need a get_config() that their constructor accepts",
            ) from error
        guard.raise_refusal()
    if not isinstance(model, keras.layers.Layer):
        raise CorruptionError(f"{where} describes no model", file=where, found=type(model).__name__)
    if getattr(model, "compiled", False) and not hasattr(model, "_compile_config"):
        model.compiled = False  # Keras says so even of a model whose compile() is its own and was not called
    return model


def _config_of(structure: Mapping[str, Any], where: str) -> Any:
    if structure.get("kind") != KIND or not isinstance(structure.get("config"), dict):
        raise CorruptionError(f"{where} holds no Keras configuration", file=where, found=structure.get("kind"))
    check_version(structure.get("version"), VERSION, where)
    return _decoded(structure["config"], where)


def _refuse_what_cannot_be_kept(model: Any) -> None:
    if not model.built:
        raise UnsupportedError(
            f"{type(model).__name__} {model.name!r} is not built: it has no weights yet",
            hint="call it once on a batch, or model.build(input_shape)",
        )
    for layer in model._flatten_layers():
        if issubclass(type(layer), denied()):
            raise UnsupportedError(
                f"layer {layer.name!r} is a {type(layer).__name__}: what it runs is code, and no file keeps code",
                hint="write it as a class with @safepoint.register",
            )


def _plain(node: Any, path: str, shared: dict[Any, int]) -> Any:
    """A copy that is JSON, stays the same through it, and is the same for the same model in any process.

    Vocabularies given as paths become empty: their content is state.
    """
    if isinstance(node, dict):
        return {str(key): _plain(child, f"{path}/{key}", shared) for key, child in _entry(node, shared).items()}
    if isinstance(node, list | tuple):
        return [_plain(child, f"{path}/{index}", shared) for index, child in enumerate(node)]
    if isinstance(node, float):
        return float(node) if math.isfinite(node) else {_NON_FINITE: repr(float(node))}
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, int | str):
        return int(node) if isinstance(node, int) else str(node)
    raise UnsupportedError(
        f"the configuration holds a {type(node).__name__} at {path}",
        expected="text, numbers, lists and dictionaries",
        hint="let get_config() return plain values",
    )


def _entry(node: dict[str, Any], shared: dict[Any, int]) -> dict[str, Any]:
    name = node.get("class_name")
    if isinstance(name, str) and published(node.get("module"), name) != node.get("module"):
        node = {**node, "module": published(node["module"], name), "registered_name": None}
    if name in _LOOKUPS and isinstance(node.get("config"), dict) and isinstance(node["config"].get("vocabulary"), str):
        node = {**node, "config": {**node["config"], "vocabulary": None}}
    if "shared_object_id" in node:  # a memory address; policies are values, which sharing does not change
        number = node["shared_object_id"]
        node = {key: child for key, child in node.items() if key != "shared_object_id"}
        if name not in _VALUE_CLASSES:
            node["shared_object_id"] = shared.setdefault(number, len(shared))
    return node


def _decoded(node: Any, where: str, depth: int = 0) -> Any:
    """A copy for Keras, which takes configurations apart as it reads them; non-finite numbers are numbers again."""
    if depth > MAX_DEPTH:
        raise too_large(where)
    if isinstance(node, dict):
        if node.keys() == {_NON_FINITE} and node[_NON_FINITE] in {"nan", "inf", "-inf"}:
            return float(node[_NON_FINITE])
        return {key: _decoded(child, where, depth + 1) for key, child in node.items()}
    return [_decoded(child, where, depth + 1) for child in node] if isinstance(node, list | tuple) else node


def _register() -> None:
    """Make what `@safepoint.register` was given known to Keras, so that its configurations carry those names."""
    for name, obj in registered().items():
        object_registration.GLOBAL_CUSTOM_OBJECTS[name] = obj
        object_registration.GLOBAL_CUSTOM_NAMES.setdefault(obj, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, which Keras gives where we raise, and no draws from Python's generator, of which seeds are made."""
    state = random.getstate()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(state)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
