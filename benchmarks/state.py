"""The state that the benchmarks save: GPT-2-small's shapes with AdamW moments, 1.49 GB of float32."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HIDDEN = 768
BLOCKS = 12


def gpt2(seed: int = 0, blocks: int = BLOCKS) -> Any:
    """A module with GPT-2-small's parameters; it computes nothing."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    block = {
        "ln_1.weight": (HIDDEN,),
        "ln_1.bias": (HIDDEN,),
        "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
        "attn.c_attn.bias": (3 * HIDDEN,),
        "attn.c_proj.weight": (HIDDEN, HIDDEN),
        "attn.c_proj.bias": (HIDDEN,),
        "ln_2.weight": (HIDDEN,),
        "ln_2.bias": (HIDDEN,),
        "mlp.c_fc.weight": (HIDDEN, 4 * HIDDEN),
        "mlp.c_fc.bias": (4 * HIDDEN,),
        "mlp.c_proj.weight": (4 * HIDDEN, HIDDEN),
        "mlp.c_proj.bias": (HIDDEN,),
    }
    shapes = {"wte": (50257, HIDDEN), "wpe": (1024, HIDDEN)}
    shapes |= {f"h.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()}
    shapes |= {"ln_f.weight": (HIDDEN,), "ln_f.bias": (HIDDEN,)}
    model = nn.Module()
    for name, shape in shapes.items():
        model.register_parameter(name.replace(".", "_"), nn.Parameter(torch.randn(shape) * 0.02))
    return model


def adamw(model: Any) -> Any:
    """AdamW over the module after one step, so that its moments exist."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def remember(path: Path) -> None:
    """Read a file or folder into the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as stream:
            while stream.read(16 << 20):
                pass


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
