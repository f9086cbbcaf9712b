"""PyTorch: modules, optimizers, generators and tensors.

Invariant: restoring writes into the tensors that are there; nothing is pickled, and no state is kept by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.utils.data

from safepoint.adapters.protocol import Scope
from safepoint.adapters.torch import generators, modules, optimizers, overlap, tensors
from safepoint.adapters.torch.generators import RANDOM_STATES
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, StateTree, TensorSpec

OPAQUE = False
FORMAT = "pt"
TENSOR_KINDS = (tensors.KIND,)
_KINDS = ((torch.nn.Module, modules.KIND), (torch.optim.Optimizer, optimizers.KIND))


def handles(obj: Any) -> bool:
    """Modules, optimizers and generators; data loaders only to refuse them, unless they keep their own position."""
    if isinstance(obj, torch.utils.data.DataLoader):
        return not hasattr(obj, "state_dict")
    return isinstance(obj, torch.nn.Module | torch.optim.Optimizer | torch.Generator)


def is_model(obj: Any) -> bool:
    """Modules."""
    return isinstance(obj, torch.nn.Module)


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """The parameters of a module, each once, under clean names."""
    return modules.owners(obj) if isinstance(obj, torch.nn.Module) else ()


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of a module, an optimizer or a generator.

    Raises:
        UnsupportedError: it is a bare data loader, or something in it cannot be captured.
    """
    if isinstance(obj, torch.nn.Module):
        return modules.to_tree(obj)
    if isinstance(obj, torch.optim.Optimizer):
        return optimizers.to_tree(obj, scope)
    if isinstance(obj, torch.Generator):
        return generators.to_tree(obj)
    refuse(obj)
    raise AssertionError(f"{type(obj).__name__} is not handled")


def refuse(obj: Any) -> None:
    """Refuse a bare data loader, when it is tracked and not at the first save.

    Raises:
        UnsupportedError: it is one.
    """
    if isinstance(obj, torch.utils.data.DataLoader):
        raise UnsupportedError(
            f"a bare {type(obj).__name__} does not know its position",
            hint="track and iterate safepoint.Resumable(loader) instead",
        )


def opaque(obj: Any) -> bool:
    """Modules with extra state of their own: `set_extra_state` is the user's code."""
    base = torch.nn.Module.set_extra_state
    return isinstance(obj, torch.nn.Module) and any(type(m).set_extra_state is not base for m in obj.modules())


def per_rank(obj: Any) -> bool:
    """Generators: each process draws its own numbers."""
    return isinstance(obj, torch.Generator)


def to_come(obj: Any) -> int:
    """Bytes of optimizer slots that the first step will make."""
    return optimizers.to_come(obj) if isinstance(obj, torch.optim.Optimizer) else 0


def before_step(obj: Any, call: Callable[[], None]) -> Callable[[], None] | None:
    """Run `call` before each step of an optimizer, until what is returned is called."""
    return overlap.before_step(obj, call) if isinstance(obj, torch.optim.Optimizer) else None


def stepped(obj: Any) -> dict[tuple[int, int], Callable[[], bool]]:
    """The memory of an optimizer's parameters and state, and whether torch saw a write to it since."""
    return overlap.stepped(obj)


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """What `like` accepts of a saved state; see the module of its kind.

    Raises:
        MismatchError: the saved state is another kind of object's.
        UnsupportedError: `like` cannot be captured itself.
    """
    kind = next((kind for base, kind in _KINDS if isinstance(like, base)), "dict")
    found = saved.skeleton.kind if isinstance(saved.skeleton, Branch) else "dict"
    if found not in {kind, "dict", ""}:
        raise MismatchError(
            f"{type(like).__name__} cannot take what was saved under its name", expected=kind, found=found
        )
    if isinstance(like, torch.nn.Module):
        return modules.template(like, saved)
    if isinstance(like, torch.optim.Optimizer):
        return optimizers.template(like, saved, scope)
    return generators.template(like, saved)


def advice(like: Any, saved: StateTree, scope: Scope, differs: Iterable[tuple[TensorSpec, TensorSpec]]) -> str | None:
    """Why an optimizer's names differ, where the reason is its parameters or their groups."""
    del differs
    return optimizers.advice(like, saved, scope) if isinstance(like, torch.optim.Optimizer) else None


def examine(tree: StateTree, like: Any, scope: Scope) -> None:
    """Refuse bytes that `like` cannot hold all at once; changes nothing, and `from_tree` would refuse them too.

    Raises:
        MismatchError: tied tensors differ in the snapshot.
    """
    del scope
    if isinstance(like, torch.nn.Module):
        modules.check(tree, like)


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Write the leaves into `like`, which keeps its tensors."""
    if isinstance(like, torch.nn.Module):
        return modules.from_tree(tree, like)
    if isinstance(like, torch.optim.Optimizer):
        return optimizers.from_tree(tree, like, scope)
    return generators.from_tree(tree, like)


__all__ = [
    "FORMAT",
    "OPAQUE",
    "RANDOM_STATES",
    "TENSOR_KINDS",
    "advice",
    "before_step",
    "examine",
    "from_tree",
    "handles",
    "is_model",
    "opaque",
    "owners",
    "per_rank",
    "refuse",
    "stepped",
    "template",
    "to_come",
    "to_tree",
]
