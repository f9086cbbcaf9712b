"""The walk over a stranger's configuration, before Keras sees any of it: every name is resolved, every oddity refused.

Invariant: what `check` lets through names only allowed classes and functions, holds no code, names no path, and is no
larger or deeper than a real model's.
"""

from __future__ import annotations

from typing import Any, final

import keras

from safepoint.adapters.keras.whole_model.allowed import Names, is_keras, published
from safepoint.errors import CorruptionError, UntrustedError
from safepoint.limits import MAX_RANK
from safepoint.tree import DTYPES

MAX_DEPTH = 120  # a nested model takes four levels; Keras itself recurses several frames a level
_MAX_NODES = 3_000_000
# Keras' marks of values that are no JSON: key → what their configuration may hold.
_TYPED: dict[str, frozenset[str]] = {
    "__tensor__": frozenset({"value", "dtype"}),
    "__numpy__": frozenset({"value", "dtype"}),
    "__keras_tensor__": frozenset({"shape", "dtype", "keras_history"}),
    "__bytes__": frozenset({"value"}),
    "__slice__": frozenset({"start", "stop", "step"}),
    "__ellipsis__": frozenset(),
}
_PATHS = frozenset({"vocabulary", "idf_weights", "filepath", "filename", "file", "path", "directory", "url"})


def check(config: Any, names: Names) -> None:
    """Refuse a configuration that names anything not allowed, or that is no configuration at all.

    Legacy entries without a module, and classes of one backend, are given the module of Keras' public class of that
    name, in place, so that they take the same way as all others.

    Raises:
        UntrustedError: a name that nobody allowed, code, or a path.
        CorruptionError: not what Keras writes, too large or too deep.
    """
    _Walk(names).visit(config, "config", 0)


def too_large(where: str) -> CorruptionError:
    """What is deeper or larger than any real model."""
    return CorruptionError(
        f"the configuration in {where} is too deep or too large",
        file=where,
        expected=f"at most {MAX_DEPTH} levels and {_MAX_NODES:,} entries",
    )


@final
class _Walk:
    def __init__(self, names: Names) -> None:
        self._names = names
        self._nodes = 0

    def visit(self, node: Any, path: str, depth: int) -> None:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > _MAX_NODES:
            raise too_large(self._names.where)
        if isinstance(node, dict):
            if "class_name" in node:
                self._entry(node, path)
            for key, child in node.items():
                self.visit(child, f"{path}/{key}", depth + 1)
        elif isinstance(node, list | tuple):
            for index, child in enumerate(node):
                self.visit(child, f"{path}/{index}", depth + 1)

    def _entry(self, node: dict[str, Any], path: str) -> None:
        name, config = node["class_name"], node.get("config")
        module, registered_name = node.get("module"), node.get("registered_name", name)
        texts = (name, module or "", registered_name or "")
        if not all(isinstance(text, str) for text in texts):
            raise self._malformed(path, "names must be text")
        if name.startswith("__"):
            self._typed(name, config, node, path)
            return
        is_function = name == "function"
        target = config if is_function else name
        if not isinstance(target, str):
            raise self._malformed(path, "a function is named by text")
        if module is None and "module" not in node and not is_function:
            node["module"] = module = _legacy_module(name)
        if published(module, name) != module:
            node["module"], node["registered_name"] = module, registered_name = published(module, name), None
        resolved = self._names.resolve(target, registered_name, module, is_function=is_function)
        if isinstance(config, dict) and isinstance(resolved, type):
            self._no_paths(config, resolved, path)

    def _typed(self, name: str, config: Any, node: dict[str, Any], path: str) -> None:
        if name == "__typespec__":
            self._names.resolve(str(node.get("spec_name")), None, str(node.get("module")), is_function=False)
            return
        if name not in _TYPED:
            raise UntrustedError(
                f"{self._names.where} holds code ({name}) at {path}; nothing was run",
                expected="names of classes and functions",
                found=name,
                hint="replace the lambda by a named function with @safepoint.register and save the model again",
            )
        if not isinstance(config, dict) or config.keys() - _TYPED[name]:
            raise self._malformed(path, f"not what {name} holds")
        dtype = config.get("dtype", "float32")
        if dtype not in DTYPES and dtype != "string":  # "U999999999" would allocate what it says
            raise self._malformed(path, f"unknown dtype {str(dtype)[:40]!r}")
        shape = config.get("shape")
        if isinstance(shape, list) and len(shape) > MAX_RANK:
            raise self._malformed(path, "too many dimensions")

    def _no_paths(self, config: dict[str, Any], resolved: type, path: str) -> None:
        """Keras opens a vocabulary that is given as text: a file could read any other file that way."""
        if not (is_keras(resolved.__module__) or issubclass(resolved, _lookups())):
            return
        for key in _PATHS & config.keys():
            if isinstance(config[key], str | dict):
                raise UntrustedError(
                    f"{self._names.where} has a path as {key} of {resolved.__name__} at {path}; nothing was opened",
                    expected="the content itself",
                    found=str(config[key])[:80],
                    hint="set the vocabulary from a list, or adapt() the layer, and save the model again",
                )

    def _malformed(self, path: str, what: str) -> CorruptionError:
        return CorruptionError(
            f"the configuration in {self._names.where} is not one that Keras writes: {what}",
            file=self._names.where,
            found=path[-200:],
        )


def _lookups() -> tuple[type, ...]:
    names = ("StringLookup", "IntegerLookup", "TextVectorization")
    return tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name))


def _legacy_module(name: str) -> str | None:
    """Where Keras publishes a class that an old configuration names without its module; None if nowhere."""
    places = ("layers", "models", "initializers", "regularizers", "constraints", "losses", "metrics", "optimizers")
    return next((f"keras.{p}" for p in places if isinstance(vars(getattr(keras, p)).get(name), type)), None)
