"""CUDA tensors to host memory, beside what the device computes: pinned memory and a side stream.

Invariant: a copy holds what the kernels that were queued before it computed. Not measured: nobody of us has run it on a
device yet; the tests run it against a pretended one.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, final

import torch

from safepoint.tree.leaves import Bytes

_log = logging.getLogger("safepoint")
_cuda: Any = torch.cuda
_streams: dict[Any, Any] = {}  # device → its side stream
_pinned: dict[int, int] = {}  # address of host memory → bytes that the driver knows


def is_on_device(tensor: Any) -> bool:
    """Whether a tensor's bytes are copied by this module: dense, strided, in a CUDA device's memory."""
    return bool(
        tensor.device.type == "cuda" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    )


@final
class CudaTransfer:
    """See `safepoint.tree.leaves.Transfer`."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.address = (tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def start(self, target: Bytes) -> Callable[[], None]:
        tensor = self._tensor
        if not len(target):
            return lambda: None
        pin(target)
        stream = _side_stream(tensor.device)
        host = torch.from_numpy(target)
        with torch.no_grad():
            bytes_there = tensor.detach().view(-1).view(torch.uint8)
            stream.wait_stream(_cuda.current_stream(tensor.device))  # what is queued there makes the content
            with _cuda.stream(stream):
                host.copy_(bytes_there, non_blocking=True)
            bytes_there.record_stream(stream)  # a tensor that is freed meanwhile keeps its memory until it is copied
        wait: Callable[[], None] = stream.record_event().synchronize
        return wait


def pin(target: Bytes) -> None:
    """Tell the driver about the memory that `target` is a part of, once, so that copies to it need not wait.

    Where it refuses, copies are still right, and slower.
    """
    owner: Any = target
    while isinstance(owner.base, type(target)):
        owner = owner.base
    address, size = owner.ctypes.data, owner.nbytes
    if _pinned.get(address) == size:
        return
    result = _cuda.cudart().cudaHostRegister(address, size, 0)
    if int(result) != 0:
        _log.debug("%d bytes of staging memory could not be pinned: error %s", size, result)
        return
    _pinned[address] = size
    weakref.finalize(owner, _unpin, address)


def _unpin(address: int) -> None:
    if _pinned.pop(address, None) is not None:
        _cuda.cudart().cudaHostUnregister(address)


def _side_stream(device: Any) -> Any:
    if device not in _streams:
        _streams[device] = _cuda.Stream(device)
    return _streams[device]
