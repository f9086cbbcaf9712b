"""What a model is beside its modules and tensors: modes, frozen parameters, and which tensors are one.

Invariant: a file can only name what the model has; anything else is damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from safepoint.adapters.torch.whole_model.compare import walk
from safepoint.adapters.torch.whole_model.weights import members, ties
from safepoint.errors import CorruptionError


def describe(model: Any) -> dict[str, Any]:
    """`training` of the model and the modules that differ from it, `frozen` parameters, `ties` of tensors."""
    others = [path for path, module in walk(model) if module.training != model.training]
    parameters = {name: tensor for name, tensor in members(model).items() if isinstance(tensor, nn.Parameter)}
    return {
        "training": model.training,
        "other_mode": others,
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "ties": ties(model),
    }


def tie(model: Any, form: Mapping[str, Any], where: str) -> None:
    """Make one tensor of those that were one; what the constructor tied is left as it is.

    Raises:
        CorruptionError: there are no such tensors.
    """
    for group in _lists(form.get("ties", []), where):
        there = members(model)
        if not group or not all(name in there for name in group):
            raise CorruptionError(f"{where} ties tensors that the model does not have", file=where, found=group[:3])
        first = there[group[0]]
        for name in group[1:]:
            if there[name].shape != first.shape or type(there[name]) is not type(first):
                raise CorruptionError(f"{where} ties {group[0]} and {name}, which differ", file=where)
            if there[name] is not first:
                path, _, last = name.rpartition(".")
                setattr(model.get_submodule(path), last, first)


def apply(model: Any, form: Mapping[str, Any], where: str) -> None:
    """Set modes and frozen parameters as they were.

    Raises:
        CorruptionError: there are no such modules or parameters.
    """
    training, others, frozen = form.get("training"), form.get("other_mode", []), form.get("frozen", [])
    modules = dict(walk(model))
    parameters = {name: tensor for name, tensor in members(model).items() if isinstance(tensor, nn.Parameter)}
    (others, frozen) = _lists([others, frozen], where)
    unknown = [path for path in others if path not in modules] + [name for name in frozen if name not in parameters]
    if not isinstance(training, bool) or unknown:
        raise CorruptionError(
            f"{where} has modes of modules that the model does not have", file=where, found=unknown[:3]
        )
    for path, module in modules.items():
        module.training = training != (path in set(others))
    for name, parameter in parameters.items():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(name not in set(frozen))


def _lists(found: Any, where: str) -> list[list[str]]:
    good = isinstance(found, list) and all(isinstance(group, list) for group in found)
    if not good or not all(isinstance(name, str) for group in found for name in group):
        raise CorruptionError(f"{where} has no lists of names where they belong", file=where)
    return list(found)
