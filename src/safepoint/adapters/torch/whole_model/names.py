"""What a file may name when a PyTorch model is built: torch's own layers and activations, and what the caller allows.

Invariant: a name is only looked up in fixed tables, in what the program registered or passed, and among classes that
trusted modules, already imported, define themselves; nothing here imports.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn, final

import torch
from torch import nn

from safepoint.adapters.registered import qualified_name, registered
from safepoint.adapters.structures import defined_in, refusal, within
from safepoint.adapters.torch.whole_model import hugging_face, layers
from safepoint.errors import UntrustedError

# Functions of tensors that models take as arguments. A fixed list: `torch.load` and `torch.compile` are public too.
_FUNCTIONAL = (
    "binary_cross_entropy binary_cross_entropy_with_logits celu cosine_similarity cross_entropy elu gelu glu "
    "hardshrink hardsigmoid hardswish hardtanh huber_loss kl_div l1_loss leaky_relu log_softmax logsigmoid mish "
    "mse_loss nll_loss normalize pairwise_distance relu relu6 rrelu scaled_dot_product_attention selu sigmoid silu "
    "smooth_l1_loss softmax softmin softplus softshrink softsign tanh tanhshrink"
)
_PLAIN = "abs cos erf exp log relu selu sigmoid sin softmax sqrt square tanh"


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
        own = layers.public().get(name) or functions().get(name)
        if own is not None:
            return own
        user = {**registered(), **self.custom_objects}
        if name in user:
            return user[name]
        short = name.rpartition(".")[2]
        return self.custom_objects.get(short) or self._trusted(name) or hugging_face.find(name)

    def resolve(self, name: str) -> Any:
        """The class or function that a file means.

        Raises:
            UntrustedError: nobody allowed it; the message says how to.
        """
        found = self.find(name)
        if found is None:
            self._refuse(name)
        return found

    def module(self, name: str) -> Any:
        """The `nn.Module` class that a file means.

        Raises:
            UntrustedError: nobody allowed it, or it is no such class.
        """
        found = self.resolve(name)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise UntrustedError(
                f"{self.where} builds a model of {name}, which is no torch.nn.Module class; nothing was run",
                expected="a class",
                found=type(found).__name__,
            )
        return found

    def _trusted(self, name: str) -> Any:
        """A class or function defined inside a trusted prefix; never what such a module merely imported."""
        module, _, short = name.rpartition(".")
        found = defined_in(module, short, self.trust)
        if isinstance(found, type):
            return found if issubclass(found, nn.Module) else None
        # torch's functions open files and run programs: of its own, only those in the table
        return found if isinstance(found, types.FunctionType) and not within(module, ("torch",)) else None

    def _refuse(self, name: str) -> NoReturn:
        own = {
            "torch": "only public layers and activation functions of torch.nn can be named; this torch may be another",
            "transformers": "only public models of transformers can be named: install it, or a newer version",
        }
        may = "torch.nn's own layers, models of transformers, registered classes, custom_objects=, trust="
        raise refusal(self.where, name, expected=may, own=own.get(name.partition(".")[0]))


@cache
def functions() -> Mapping[str, Any]:
    """Public name → function of tensors."""
    found = {f"torch.nn.functional.{n}": getattr(nn.functional, n, None) for n in _FUNCTIONAL.split()}
    found.update({f"torch.{n}": getattr(torch, n, None) for n in _PLAIN.split()})
    return {name: function for name, function in found.items() if function is not None}


def name_of(obj: Any) -> str | None:
    """The name by which a file may mean a class or function; None for what has no such name (a lambda)."""
    if isinstance(obj, type) and (own := layers.name_of(obj) or hugging_face.name_of(obj)) is not None:
        return own
    found = next((name for name, function in functions().items() if function is obj), None)
    if found is not None:
        return found
    known = registered()
    found = next((name for name, other in known.items() if other is obj), None)
    if found is not None or not isinstance(obj, type | types.FunctionType):
        return found
    full = qualified_name(obj)
    again = next((n for n, other in known.items() if isinstance(other, type) and qualified_name(other) == full), None)
    return again or (None if full.endswith("<lambda>") else full)
