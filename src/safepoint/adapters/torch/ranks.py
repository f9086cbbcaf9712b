"""Plain data parallelism: which of how many processes this is, and bytes between them.

Invariant: nothing is pickled, so nothing that another rank sends can run. Every rank calls the same function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """(rank, number of ranks) of the default process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(data: bytes) -> list[bytes]:
    """Every rank's `data`, in the order of ranks, on every rank; lengths may differ."""
    if world()[1] == 1:
        return [data]
    device = _device()
    sizes = _all_gather(torch.tensor([len(data)], dtype=torch.int64, device=device))
    lengths = [int(size.item()) for size in sizes]
    if not max(lengths):
        return [b""] * len(lengths)
    padded = _all_gather(_tensor(data, max(lengths)).to(device))
    return [_bytes(part[:length]) for part, length in zip(padded, lengths, strict=True)]


def broadcast(data: bytes) -> bytes:
    """Rank 0's `data`, on every rank; what the others pass is not looked at."""
    if world()[1] == 1:
        return data
    device = _device()
    length = torch.tensor([len(data)], dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    size = int(length.item())
    if not size:
        return b""
    content = _tensor(data if world()[0] == 0 else b"", size).to(device)
    dist.broadcast(content, src=0)
    return _bytes(content)


def barrier() -> None:
    """Return when every rank is here."""
    if world()[1] > 1:
        gather(b"")  # dist.barrier() of NCCL guesses a device, and warns


def _all_gather(tensor: Any) -> list[Any]:
    parts = [torch.empty_like(tensor) for _ in range(world()[1])]
    dist.all_gather(parts, tensor)
    return parts


def _tensor(data: bytes, length: int) -> Any:
    padded = np.zeros(length, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return torch.from_numpy(padded)


def _bytes(tensor: Any) -> bytes:
    content: bytes = tensor.cpu().numpy().tobytes()
    return content


def _device() -> str:
    """Where the process group's tensors must be: the CPU if any of its parts works there."""
    pairs = dist.get_backend_config().split(",")
    devices = [pair.partition(":")[0] for pair in pairs]
    return "cpu" if "cpu" in devices else devices[0]
