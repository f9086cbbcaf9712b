"""What a file may name when a Keras model is built: an allow-list, made from Keras' public classes and the caller's.

Invariant: a name is only ever looked up among modules that the program has already imported; nothing here imports,
and what is denied stays denied whoever passes it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, final

import keras

from safepoint.adapters.registered import registered
from safepoint.adapters.structures import defined_in, refusal, within
from safepoint.errors import UntrustedError

# Each runs or opens something that its configuration holds or points to: byte code, a pickle, a SavedModel.
_DENIED = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer")
# Functions by where Keras publishes them. Among `keras.ops` only what takes tensors and gives tensors.
_FUNCTION_MODULES = ("keras.activations", "keras.losses", "keras.metrics", "keras.regularizers", "keras.ops")
_NO_FUNCTIONS = frozenset(
    {"serialize", "deserialize", "get", "convert_to_numpy", "is_tensor", "custom_gradient", "jvp"}
)
_NO_FUNCTIONS |= {"map", "scan", "associative_scan", "switch", "while_loop", "fori_loop", "cond", "vectorize"}
_NO_FUNCTIONS |= {"vectorized_map"}
_OTHER_CLASSES = (
    "keras.random.SeedGenerator",
    "keras.src.layers.preprocessing.feature_space.Cross",
    "keras.src.layers.preprocessing.feature_space.Feature",
    "keras.Quantizer",
    "keras.quantizers.AbsMaxQuantizer",
    "keras.quantizers.QuantizationConfig",
    "keras.quantizers.Int8QuantizationConfig",
    "keras.quantizers.Int4QuantizationConfig",
    "keras.quantizers.Float8QuantizationConfig",
    "keras.distillation.DistillationLoss",
    "keras.distillation.FeatureDistillation",
    "keras.distillation.LogitsDistillation",
)
_BUILTINS = ("activations", "constraints", "initializers", "losses", "metrics", "optimizers", "regularizers")


@final
@dataclass(frozen=True, slots=True)
class Names:
    """The names that one load may use.

    Attributes:
        custom_objects: name → class or function, as the caller passed them.
        trust: prefixes of modules the program has imported, whose own classes and functions a file may name.
        where: what names things, for messages: a path.
    """

    custom_objects: Mapping[str, Any]
    trust: tuple[str, ...]
    where: str

    def resolve(self, name: str, registered_name: str | None, module: str | None, *, is_function: bool) -> Any:
        """The class or function that an entry of a configuration means.

        Raises:
            UntrustedError: nobody allowed it; the message says how to.
        """
        found = self._find(name, registered_name, module, is_function=is_function)
        full = f"{module or '__main__'}.{name}"
        if found is None:
            self._refuse(full, module)
        if isinstance(found, type) and issubclass(found, denied()):
            raise UntrustedError(
                f"{self.where} asks for {full}, which runs or opens what its configuration holds; nothing was run",
                expected="layers that are only parameters",
                found=full,
                hint="replace the layer by a class with @safepoint.register and save the model again",
            )
        if is_function and isinstance(found, type):
            self._refuse(full, module)
        return found

    def _find(self, name: str, registered_name: str | None, module: str | None, *, is_function: bool) -> Any:
        """Keras' own where the entry says so, then what is registered, passed or trusted, by any name it goes by."""
        if is_keras(module):
            return _keras_object(f"{module}.{name}", is_function=is_function)
        user = {**registered(), **keras.saving.get_custom_objects(), **self.custom_objects}
        key = name if is_function else registered_name
        if key is not None and key in user:
            return user[key]
        if is_function and module == "builtins":
            found = next((f for m in _BUILTINS if (f := _keras_object(f"keras.{m}.{name}", is_function=True))), None)
            found = found or next((user[other] for other in user if other.endswith(f">{name}")), None)
            return found or self._trusted_function(name)
        for other in (f"{module or '__main__'}.{name}", name, registered_name):
            if other is not None and other in user:
                return user[other]
        return self._trusted(name, module or "__main__")

    def _trusted(self, name: str, module: str) -> Any:
        """A class or function defined inside a trusted prefix; never what such a module merely imported."""
        found = defined_in(module, name, self.trust)
        is_class = isinstance(found, type) and hasattr(found, "from_config")
        return found if is_class or isinstance(found, types.FunctionType) else None

    def _trusted_function(self, name: str) -> Any:
        """Keras forgets the module of a function that is not registered: the only one of that name, if it is."""
        modules = [module for module in sorted(sys.modules) if within(module, self.trust)]
        found = {id(f): f for m in modules if isinstance(f := self._trusted(name, m), types.FunctionType)}
        return next(iter(found.values())) if len(found) == 1 else None

    def _refuse(self, full: str, module: str | None) -> NoReturn:
        own = "only Keras' public layers, losses, metrics, optimizers and functions of tensors can be named"
        package = "its module" if module == "builtins" else None  # Keras forgets where functions come from
        may = "Keras' own public classes, registered ones, custom_objects=, trust="
        raise refusal(self.where, full, expected=may, own=own if is_keras(module) else None, package=package)


def published(module: str | None, name: str) -> str | None:
    """The module under which a class goes on any backend: Keras has optimizers for torch alone, by private names."""
    private = module is not None and within(module, ("keras.src.backend",))
    return "keras.optimizers" if private and isinstance(vars(keras.optimizers).get(name), type) else module


def is_keras(module: str | None) -> bool:
    """Whether a module is part of Keras itself."""
    return module is not None and within(module, ("keras",))


@cache
def denied() -> tuple[type, ...]:
    """Classes that no file may name, however they are passed; their subclasses inherit what is wrong with them."""
    return tuple(getattr(keras.layers, name) for name in _DENIED if hasattr(keras.layers, name))


@cache
def _bases() -> tuple[type, ...]:
    return (
        keras.Operation,  # layers and models too
        keras.Loss,
        keras.Metric,
        keras.Optimizer,
        keras.Initializer,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
        keras.optimizers.schedules.LearningRateSchedule,
        keras.DTypePolicy,
    )


@cache
def _others() -> frozenset[type]:
    return frozenset(found for path in _OTHER_CLASSES if isinstance(found := _attribute(path), type))


def _keras_object(path: str, *, is_function: bool) -> Any:
    """The public object at `keras.…`, or a class of Keras' own where an imported module defines it; None if neither."""
    found = _attribute(path)
    module, _, name = path.rpartition(".")
    if isinstance(found, type):
        owned = is_keras(found.__module__) and (issubclass(found, _bases()) or found in _others())
        return found if owned and not is_function else None
    allowed = is_function and within(module, _FUNCTION_MODULES) and name not in _NO_FUNCTIONS
    return found if allowed and isinstance(found, types.FunctionType) and is_keras(found.__module__) else None


def _attribute(path: str) -> Any:
    """What an imported module holds under the last part of `path`; imports nothing and calls nothing."""
    module, _, name = path.rpartition(".")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None
