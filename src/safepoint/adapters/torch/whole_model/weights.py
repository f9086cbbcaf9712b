"""The file's tensors become the memory of a model that was just built.

Invariant: every parameter and buffer gets the content it was saved with, or nothing is returned; no content is copied
but to another dtype or device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from safepoint.adapters.torch import modules, tensors
from safepoint.adapters.torch.whole_model.compare import walk
from safepoint.errors import CorruptionError, MismatchError, UnsupportedError
from safepoint.tree import Leaf, StateTree, Tensor, match

HIDDEN = "__safepoint__/hidden/"


def members(model: Any) -> dict[str, Any]:
    """Every parameter and buffer under every clean name, persistent or not."""
    found: dict[str, Any] = {}
    for path, module in walk(model):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found[f"{path}.{name}" if path else name] = tensor
    return found


def hidden(model: Any, tree: StateTree) -> dict[str, Tensor]:
    """What `state_dict` leaves out: non-persistent buffers, as `__safepoint__/hidden/<name>`.

    They are kept although a constructor makes them again: it may have been told to by the processor it ran on, and
    the program may have changed them.
    """
    seen = {id(tensor) for name, tensor in members(model).items() if name in tree.leaves}
    return {
        f"{HIDDEN}{name}": tensors.named_leaf(name, tensor)
        for name, tensor in members(model).items()
        if name not in tree.leaves and id(tensor) not in seen
    }


def ties(model: Any) -> list[list[str]]:
    """Groups of names that are one and the same parameter or buffer."""
    groups: dict[int, list[str]] = {}
    for name, tensor in members(model).items():
        groups.setdefault(id(tensor), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def give(model: Any, saved: StateTree, load: Callable[[Iterable[str]], StateTree], where: str) -> None:
    """Check that `saved` is the state of such a model, then load it and make it the model's memory.

    Raises:
        MismatchError: names or shapes are not those of the model.
        CorruptionError: a block is not what was written.
    """
    state = StateTree(
        {n: leaf for n, leaf in saved.leaves.items() if not n.startswith("__safepoint__/")}, saved.skeleton
    )
    extra = {n.removeprefix(HIDDEN): n for n in saved.leaves if n.startswith(HIDDEN)}
    _check_fit(model, state, extra, saved, where)
    loaded = load([*state.leaves, *extra.values()])
    targets = members(model)
    rest: dict[str, Leaf] = {}
    given: set[int] = set()
    for name in state.leaves:
        leaf = loaded.leaves[name]
        if name not in targets or not isinstance(leaf, Tensor):
            rest[name] = leaf
        elif id(targets[name]) not in given:
            given.add(id(targets[name]))
            _adopt(targets[name], leaf)
    for name, stored in extra.items():
        leaf = loaded.leaves[stored]
        assert isinstance(leaf, Tensor)
        _adopt(targets[name], leaf)
    modules.from_tree(StateTree(rest, saved.skeleton), model)


def convert(model: Any, device: Any, dtype: Any) -> Any:
    """Move to a device, and the floating-point weights to a dtype.

    Raises:
        UnsupportedError: no such dtype, or not a floating-point one; or the device is not there.
    """
    kind = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise UnsupportedError(
            f"dtype={dtype!r} is no floating-point dtype of torch", expected="such as torch.bfloat16"
        )
    if device is None and kind is None:
        return model

    def converted(tensor: Any) -> Any:  # `Module.to` would make real numbers of complex ones, without a word
        return tensor.to(device=device, dtype=kind if tensor.is_floating_point() else None)

    try:
        return model._apply(converted)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UnsupportedError(
            f"the model cannot be put on {device!r}", found=str(error).partition("\\n")[0], hint="leave device= out"
        ) from error


def _adopt(target: Any, leaf: Tensor) -> None:
    """The leaf's memory becomes the tensor's own; other references to the tensor see it too."""
    data = tensors.adopted(leaf)
    target.data = data


def _check_fit(model: Any, state: StateTree, extra: Mapping[str, str], saved: StateTree, where: str) -> None:
    live = modules.template(model, state).leaves
    error = match(live, state.leaves).error(where, cast=True)
    if error is not None:
        raise MismatchError(
            error.message.replace(
                "does not fit the live objects; nothing was changed", "does not fit its own model", 1
            ),
            missing=error.missing,
            unexpected=error.unexpected,
            differs=error.differs,
            hint="its classes, or torch itself, have changed since it was saved: use the versions that saved it",
        ) from error
    targets = members(model)
    for name, stored in extra.items():
        leaf = saved.leaves[stored]
        if name not in targets or name in state.leaves or not isinstance(leaf, Tensor):
            raise CorruptionError(f"{where} has content for {name!r}, which the model does not have", file=where)
        if tuple(targets[name].shape) != leaf.spec.shape:
            raise MismatchError(
                f"{name} in {where} has another shape than its class gives it",
                expected=tuple(targets[name].shape),
                found=leaf.spec,
            )
    covered = {id(targets[name]) for name in [*state.leaves, *extra] if name in targets}
    bare = next((name for name, tensor in targets.items() if id(tensor) not in covered), None)
    if bare is not None:
        raise MismatchError(f"{where} has no content for {bare}", missing=(bare,))
