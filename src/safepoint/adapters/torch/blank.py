"""Tensors without memory yet, on the meta device or of lazy modules: what they accept, and giving them memory.

Invariant: the tensor object stays the same, so ties, optimizers and names of owners stay too.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from safepoint.adapters.torch import tensors
from safepoint.errors import UnsupportedError
from safepoint.tree import Leaf, Tensor, TensorSpec
from safepoint.tree.leaves import Bytes

_LOG = logging.getLogger("safepoint")
_FIRST = 5


def is_blank(tensor: Any) -> bool:
    """Whether a tensor lacks nothing but memory (and, in a lazy module, a shape)."""
    lazy = torch.nn.parameter.is_lazy(tensor)
    return lazy or (tensor.device.type == "meta" and tensors.why_not(tensor, meta=True) is None)


def home(tensor: Any) -> Any:
    """The device of a tensor; of one on the meta device the default device, which it goes to."""
    if tensor.device.type != "meta":
        return tensor.device
    default = torch.get_default_device()
    return torch.device("cpu") if default.type == "meta" else default


def leaf(tensor: Any, saved: Leaf) -> Tensor:
    """What a blank tensor accepts: its own shape and dtype; any shape where a lazy module has none yet."""
    dtype = tensors.name_of(tensor.dtype)
    if not torch.nn.parameter.is_lazy(tensor):
        return Tensor(TensorSpec(tuple(tensor.shape), dtype), _unreadable)
    return Tensor(TensorSpec(saved.spec.shape if isinstance(saved, Tensor) else (), dtype), _unreadable)


def materialise(tensor: Any, shape: tuple[int, ...]) -> None:
    """Give a blank tensor memory of undefined content, on its `home`."""
    if torch.nn.parameter.is_lazy(tensor):
        tensor.materialize(shape, device=home(tensor))
        return
    new = torch.empty_like(tensor, device=home(tensor)).requires_grad_(tensor.requires_grad)
    # torch.utils.swap_tensors does the same and refuses where weak references exist: every recurrent layer has some.
    torch._C._swap_tensor_impl(tensor, new)


def tell(module: Any) -> None:
    """One warning that names what is still without memory after a restore: the snapshot had nothing for it."""
    named = [*module.named_parameters(), *module.named_buffers()]
    names = [name for name, tensor in named if is_blank(tensor)]
    if names:
        more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
        _LOG.warning(
            "still without memory, because nothing was restored into them: %s%s; give them content before use",
            ", ".join(names[:_FIRST]),
            more,
        )


def _unreadable() -> Bytes:
    raise UnsupportedError("it has no content yet")
