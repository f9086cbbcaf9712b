"""A stranger's file in a few words: what it is, how large, whether an optimizer is in it, which step it is of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safepoint.cli.text import count, size

if TYPE_CHECKING:
    from safepoint.api.open import Tensors
    from safepoint.tree import Leaf, Tensor

_OPTIMIZER = re.compile(
    r"(^|/)(\.?optimizer\w*|opt|optim|opt_state)(/|\.|$)|\.OPTIMIZER_SLOT|/(exp_avg|exp_avg_sq|momentum_buffer)$",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"(^|/)(global_?step|steps?|epochs?|iterations?|save_counter)(/\.ATTRIBUTES/VARIABLE_VALUE)?$", re.IGNORECASE
)
_MOST_CHARACTERS = 300


def summary(tensors: Tensors) -> dict[str, str]:
    """Facts for people; empty ones are left out when they are printed."""
    metadata = dict(tensors.metadata)
    known = {"config", "metadata", "values", "quantized"} & metadata.keys()
    inner = metadata.get("metadata") if isinstance(metadata.get("metadata"), dict) else {}
    inner = {**(inner or {}), **(metadata.get("values") or {})}
    shown = {key: value for key, value in metadata.items() if key not in known} | inner
    lines = [f"{key} {_short(value)}" for key, value in shown.items() if not isinstance(value, dict | list) or value]
    return {
        "framework": tensors.framework,
        "parameters": f"{num_elements(tensors):,}",
        "optimizer": optimizer_of(tensors.tree.tensors),
        "step": ", ".join(f"{name} {value}" for name, value in steps_of(tensors).items()),
        "values": count(len(tensors.tree.leaves) - len(tensors), "plain value") if tensors.plain else "",
        "metadata": "; ".join(lines[:40])[:4000],
    }


def num_elements(tensors: Tensors) -> int:
    """Elements of all tensors, quantized ones as what they stand for."""
    import math

    quantized = tensors.metadata.get("quantized", {})
    shapes = [quantized.get(name, {}).get("shape", spec.shape) for name, spec in tensors.specs.items()]
    return sum(map(math.prod, shapes))


def optimizer_of(tensors: Mapping[str, Tensor]) -> str:
    """`12 tensors, 1.2 MB`, or "no"."""
    found = [tensor.spec.num_bytes for name, tensor in tensors.items() if _OPTIMIZER.search(name)]
    return f"{count(len(found), 'tensor')}, {size(sum(found))}" if found else "no"


def steps_of(tensors: Tensors) -> dict[str, Any]:
    """What names itself a step, an epoch or the like: plain values, and scalars of whole numbers."""
    found: dict[str, Any] = {n: v for n, v in tensors.plain.items() if type(v) is int and _STEP.search(n)}
    for name, spec in tensors.specs.items():
        if not found and spec.shape == () and "int" in spec.dtype and _STEP.search(name):
            found[name] = int(tensors[name].numpy())
    return dict(list(found.items())[:4])


def leaves_of(tensors: Tensors) -> dict[str, Leaf]:
    """Tensors and values by name, in the file's order."""
    plain = tensors.plain
    return {name: plain.get(name, leaf) for name, leaf in tensors.tree.leaves.items()}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
