"""What a file may name when a JAX model is built: layers of Flax and Equinox, functions that compute, what is allowed.

Invariant: a name is only looked up in fixed tables, in what the program registered or passed, and among what trusted
modules, already imported, define themselves; nothing here imports by a name of the file.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

from safepoint.adapters.registered import qualified_name, registered
from safepoint.adapters.structures import defined_in, refusal

_FUNCTIONS = {
    "jax.nn": "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid "
    "log_softmax logsumexp mish relu relu6 selu sigmoid silu soft_sign softmax softplus squareplus swish tanh",
    "jax.numpy": "abs cos exp log log1p max maximum mean min minimum sin sqrt square sum tanh",
    "jax.lax": "erf logistic rsqrt tanh",
    "jax.nn.initializers": "ones zeros",
    "flax.linen": "avg_pool max_pool",
}
# Modules that hold layers; each is looked at only where the program has imported it.
_LAYERS = {"equinox.nn": "equinox", "flax.linen": "flax.linen", "flax.nnx": "flax.nnx"}
_FRAMEWORKS = frozenset({"jax", "jaxlib", "flax", "equinox"})


@final
@dataclass(frozen=True, slots=True)
class Names:
    """The names that one load may use.

    Attributes:
        custom_objects: name → class or function, as the caller passed them.
        trust: prefixes of modules the program has imported, whose own classes and functions a file may name.
        where: what names things, for messages: a path.
        known: what goes first: when a model that was just described is built again, its own classes.
    """

    custom_objects: Mapping[str, Any]
    trust: tuple[str, ...]
    where: str
    known: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        """What a name means here, or None where nobody allowed it."""
        if name in self.known:
            return self.known[name]
        own = public().get(name)
        if own is not None:
            return own
        user = {**registered(), **self.custom_objects}
        if name in user:
            return user[name]
        return self.custom_objects.get(name.rpartition(".")[2]) or self._trusted(name)

    def resolve(self, name: object) -> Any:
        """The class or function that a file means.

        Raises:
            UntrustedError: nobody allowed it; the message says how to.
        """
        found = self.find(name) if isinstance(name, str) else None
        if found is None:
            self._refuse(str(name))
        return found

    def _trusted(self, name: str) -> Any:
        """A class or function defined inside a trusted prefix; never what such a module merely imported."""
        module, _, short = name.rpartition(".")
        if module.partition(".")[0] in _FRAMEWORKS:
            return None
        found = defined_in(module, short, self.trust)
        return found if is_module(found) or is_record(found) or isinstance(found, types.FunctionType) else None

    def _refuse(self, name: str) -> NoReturn:
        ours = name.partition(".")[0] in _FRAMEWORKS
        own = "only layers and functions that compute can be named; this version may be another one" if ours else None
        may = "layers of Flax and Equinox, registered classes and functions, custom_objects=, trust="
        raise refusal(self.where, name, expected=may, own=own)


def public() -> dict[str, Any]:
    """Public name → layer or function, of what the program has imported."""
    found: dict[str, Any] = {}
    for module, names in _FUNCTIONS.items():
        if module in sys.modules:
            place = sys.modules[module]
            found.update({f"{module}.{n}": vars(place)[n] for n in names.split() if n in vars(place)})
    for module in _LAYERS:
        if module in sys.modules:
            layers = {
                n: kind for n, kind in vars(sys.modules[module]).items() if not n.startswith("_") and is_module(kind)
            }
            found.update({f"{module}.{n}": kind for n, kind in layers.items() if _at_home(kind)})
    return found


def name_of(obj: Any) -> str | None:
    """The name by which a file may mean a class or function; None for what has no such name (a lambda)."""
    found = next((name for name, other in public().items() if other is obj), None)
    if found is None:
        found = next((name for name, other in registered().items() if other is obj), None)
    if found is not None or not isinstance(obj, type | types.FunctionType):
        return found
    full = qualified_name(obj)
    return None if "<" in full else full


def is_module(kind: Any) -> bool:
    """Whether `kind` is a class of modules of Flax or Equinox."""
    bases = [getattr(sys.modules.get(name), "Module", None) for name in ("equinox", "flax.linen", "flax.nnx")]
    return isinstance(kind, type) and any(base is not None and issubclass(kind, base) for base in bases)


def is_record(kind: Any) -> bool:
    """Whether `kind` is a class of named tuples or dataclasses."""
    named = isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    return named or (isinstance(kind, type) and dataclasses.is_dataclass(kind) and not is_module(kind))


def _at_home(kind: Any) -> bool:
    return str(kind.__module__).partition(".")[0] in _FRAMEWORKS
