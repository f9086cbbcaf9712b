"""What `overlap=True` needs to know of torch optimizers: when they step, and what only their steps change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from safepoint.adapters.torch.cuda import is_on_device


def before_step(optimizer: Any, call: Callable[[], None]) -> Callable[[], None]:
    """Run `call` before each `optimizer.step()`; calling what is returned ends it."""

    def hook(*_: object) -> None:
        call()

    remove: Callable[[], None] = optimizer.register_step_pre_hook(hook).remove
    return remove


def stepped(optimizer: Any) -> dict[tuple[int, int], Callable[[], bool]]:
    """(address, bytes) of each dense parameter and slot, on the CPU or CUDA → whether torch counted a write since then.

    torch's counter does not see writes through `.data`, NumPy views and some fused kernels.
    """
    return {
        (tensor.data_ptr(), tensor.nbytes): _watch(tensor)
        for tensor in _tensors(optimizer)
        if tensor.layout is torch.strided and (_is_dense_on_host(tensor) or is_on_device(tensor))
    }


def _is_dense_on_host(tensor: torch.Tensor) -> bool:
    return bool(tensor.is_cpu and tensor.is_contiguous())


def _tensors(optimizer: Any) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor):
                    yield value


def _watch(tensor: torch.Tensor) -> Callable[[], bool]:
    if tensor.is_inference():  # has no counter
        return lambda: False
    before = tensor._version
    return lambda: tensor._version != before
