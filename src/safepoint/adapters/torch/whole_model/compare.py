"""Whether a module built from a description is the module that was described: the proof, at save time, that it loads.

Invariant: neither module is changed.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from safepoint.adapters.torch.whole_model import hugging_face, layers
from safepoint.adapters.torch.whole_model.build import settable
from safepoint.tree import is_value

_MAX_DEPTH = 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# nn.Module's own, and what layers derive from their parameters; `training` is kept apart.
_INTERNAL = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs", "_safepoint_arguments"}
_INTERNAL |= {"_compiled_call_impl", "_is_torch_compile"} | hugging_face.BOOKKEEPING
_INTERNAL |= {"_compile_kwargs"}  # Lightning notes on the module how `torch.compile` was called


@final
@dataclass(slots=True)
class Differences:
    """What a built module lacks of the live one.

    Attributes:
        children: paths whose modules are others, to be described by themselves.
        attributes: (path, name) → plain value that was set after construction.
        dropped: (path, name) of what was set after construction and is private or no plain value.
        why: why the module itself is another one, or None.
    """

    children: list[str] = field(default_factory=list)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    why: str | None = None


def inner(module: Any) -> Any:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if isinstance(module, nn.DataParallel) or type(module).__name__ == "DistributedDataParallel":
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
            module = module._orig_mod
        else:
            return module


def walk(module: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(clean path, module) of every module under every name, depth first; wrappers are looked through."""
    module = inner(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, f"{path}.{name}" if path else name)


def differences(live: Any, built: Any) -> Differences:
    """Compare a live module with one that was built from its description."""
    found = Differences()
    found.why = _compare(inner(live), built, "", found)
    return found


def shallow(live: Any, built: Any) -> str | None:
    """Why a container is another one than it was built as, whatever it contains; None if it is not."""
    found = Differences()
    why = _hooks(live, built) or _tensors(live, built) or _attributes(live, built, "", found)
    return why or next((f"its attribute {name} was set after construction" for _, name in found.attributes), None)


def _compare(live: Any, built: Any, path: str, found: Differences) -> str | None:
    """Why `built` is no copy of `live`, or None. What differs below is noted in `found`."""
    if _kind(live) != _kind(built):
        return f"it is a {type(live).__name__} and was built as a {type(built).__name__}"
    why = _hooks(live, built) or _tensors(live, built) or _attributes(live, built, path, found)
    if why is not None:
        return why
    ours, theirs = live._modules, built._modules
    if [n for n in theirs if n not in ours]:
        return f"{next(n for n in theirs if n not in ours)!r} was taken out of it"
    for name, child in ours.items():
        here = f"{path}.{name}" if path else name
        other = theirs.get(name)
        if child is None or other is None:
            if child is not other:
                found.children.append(here)
            continue
        below = Differences()
        if _compare(inner(child), other, here, below) is None:
            found.children += below.children
            found.attributes.update(below.attributes)
            found.dropped += below.dropped
        else:
            found.children.append(here)
    if list(ours) != list(theirs) and [n for n in ours if n in theirs] != list(theirs):
        return "its children are in another order"
    return None


def _kind(module: Any) -> Any:
    """A parametrized module has a class of its own, made for it alone."""
    if parametrize.is_parametrized(module):
        return (parametrize.type_before_parametrizations(module), *module.parametrizations)
    return type(module)


def _hooks(live: Any, built: Any) -> str | None:
    for name in _HOOKS:
        ours, theirs = getattr(live, name), getattr(built, name)
        if len(ours) != len(theirs):
            return "it has forward hooks, which are code that no file keeps (remove them before saving)"
    if ("forward" in vars(live)) != ("forward" in vars(built)):
        return "its forward was replaced, by code that no file keeps"
    return None


def _tensors(live: Any, built: Any) -> str | None:
    for what in ("_parameters", "_buffers"):
        ours, theirs = _shapes(getattr(live, what)), _shapes(getattr(built, what))
        if ours != theirs:
            differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            name = differ[0]
            return f"its {name} is {ours.get(name, 'absent')} and was built as {theirs.get(name, 'absent')}"
    if live._non_persistent_buffers_set != built._non_persistent_buffers_set:
        return "its persistent buffers are others"
    return None


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "None" if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()}


def _attributes(live: Any, built: Any, path: str, found: Differences) -> str | None:
    own = layers.name_of(type(live)) is not None
    ours = {name: value for name, value in vars(live).items() if name not in _INTERNAL}
    theirs = {name: value for name, value in vars(built).items() if name not in _INTERNAL}
    gone = next((name for name in theirs if name not in ours), None)
    if gone is not None:
        return f"its attribute {gone} was deleted"
    for name, value in ours.items():
        if name in theirs and same(value, theirs[name]):
            continue
        if own or (name in theirs and not _is_plain(value)):
            return f"its attribute {name} was changed after construction"
        if not _is_plain(value) or (name.startswith("_") and name not in theirs):
            found.dropped.append((path, name))
        elif settable(live, name):
            found.attributes[path, name] = value
        else:
            return f"its attribute {name} hides one of its class"
    return None


def same(ours: Any, theirs: Any, depth: int = 0) -> bool:
    """Whether two attributes hold the same data; objects that are no data need only be of one class."""
    if type(ours) is not type(theirs) or depth > _MAX_DEPTH:
        return type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        with torch.no_grad():
            return ours.shape == theirs.shape and ours.dtype == theirs.dtype and _equal(ours, theirs)
    if isinstance(ours, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b, depth + 1) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key], depth + 1) for key in ours)
    if isinstance(ours, float):
        return ours == theirs or (ours != ours and theirs != theirs)  # noqa: PLR0124 — NaN
    if is_value(ours) or isinstance(ours, type | set | frozenset | torch.dtype):
        return bool(ours == theirs)
    if isinstance(ours, types.FunctionType):
        return ours.__code__ is theirs.__code__  # a constructor makes a new closure each time
    return ours is theirs if isinstance(ours, types.BuiltinFunctionType) else True


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, nn.Parameter):
        return True  # in a plain attribute: a reference to one that is kept by its own name
    if ours.device.type == "meta":
        return True
    return bool(torch.equal(ours.cpu(), theirs))


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < _MAX_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return depth < _MAX_DEPTH and all(_is_plain(item, depth + 1) for pair in value.items() for item in pair)
    return is_value(value) or isinstance(value, torch.dtype)
