"""Which tensors of a state are weights, and which are an optimizer's moments of them, told by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from safepoint.tree import DTYPES, TensorSpec

_SLOTS = frozenset(
    {
        "exp_avg", "exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg",  # PyTorch
        "momentum", "velocity", "m", "u", "accumulator", "average_gradient",  # Keras
        "mu", "nu", "trace",  # Optax
    }
)  # fmt: skip
_OPTIMIZER = re.compile(r"(^|/)(\.?optimizer\w*|opt|optim|opt_state|random)(/|\.|$)", re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True)
class Roles:
    """What tensors are there for.

    Attributes:
        weights: floating-point tensors outside optimizers and random state, running statistics included.
        moments: name of a moment → (the weight that it is of, its slot).
    """

    weights: tuple[str, ...]
    moments: Mapping[str, tuple[str, str]]


def roles_of(specs: Mapping[str, TensorSpec]) -> Roles:
    """Tell by name: `optimizer/model/encoder.weight/exp_avg` is a moment of `model/encoder.weight`.

    A moment has the shape of its weight; what has not is no moment here (Adafactor's rows and columns).
    """
    weights = tuple(name for name, spec in specs.items() if is_floating(spec) and not _OPTIMIZER.search(name))
    ends: dict[str, str] = {}
    for name in weights:
        for end in (name, name.partition("/")[2]):
            if end:
                ends.setdefault(end, name)
    moments = {}
    for name, spec in specs.items():
        slot = next((word for word in reversed(name.split("/")) if word in _SLOTS), None)
        if slot is None or not _OPTIMIZER.search(name) or not is_floating(spec):
            continue
        weight = _owner(name, slot, ends)
        if weight is not None and specs[weight].shape == spec.shape:
            moments[name] = (weight, slot)
    return Roles(weights, moments)


def is_floating(spec: TensorSpec) -> bool:
    """Whether its elements are real numbers that NumPy can compute with."""
    dtype = DTYPES[spec.dtype]
    return dtype.numpy is not None and dtype.name.startswith(("float", "bfloat"))


def _owner(moment: str, slot: str, ends: Mapping[str, str]) -> str | None:
    """The weight whose name, or name without its tracked object, ends what is left without the slot."""
    words = moment.split("/")
    words.pop(len(words) - 1 - words[::-1].index(slot))
    return next((ends[end] for start in range(len(words)) if (end := "/".join(words[start:])) in ends), None)
