"""Recurrent layers as one step each: PyTorch's tracing would unroll them, for one length of sequences, into thousands.

Invariant: while a model is traced, a recurrent operator is recorded as a stand-in with the same arguments and results;
a document names the operator itself, and nothing but tracing ever sees the stand-in.
"""

from __future__ import annotations

from functools import cache
from typing import Any, final

import torch
from torch.overrides import TorchFunctionMode

_REST = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)
_GATED = f"(Tensor input, Tensor hx, {_REST}) -> (Tensor, Tensor)"
# Those of whole batches; packed sequences are operators of their own, and are left to PyTorch.
_SCHEMAS = {
    "lstm": f"(Tensor input, Tensor[] hx, {_REST}) -> (Tensor, Tensor, Tensor)",
    "gru": _GATED,
    "rnn_tanh": _GATED,
    "rnn_relu": _GATED,
}
_LIBRARY = "safepoint_traced"


@final
class AsOneStep(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """While it is on, recurrent operators are recorded whole."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = getattr(function, "__name__", "")
        if name in _SCHEMAS and len(args) == 9 and not kwargs:
            return getattr(_stand_ins(), name)(*args)
        return function(*args, **(kwargs or {}))


def operator_of(target: str) -> str | None:
    """The operator that a recorded stand-in stands for, as a document names it; None for all other targets."""
    library, _, rest = target.partition(".")
    name = rest.removesuffix(".default")
    return f"aten.{name}.input" if library == _LIBRARY and name in _SCHEMAS else None


@cache
def _stand_ins() -> Any:
    library = torch.library.Library(_LIBRARY, "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(f"{name}{schema}")
        torch.library.register_fake(f"{_LIBRARY}::{name}", _shapes, lib=library)
    _KEPT.append(library)
    return getattr(torch.ops, _LIBRARY)


_KEPT: list[Any] = []  # a library's definitions go when it goes


def _shapes(sequences: Any, state: Any, *rest: Any) -> tuple[Any, ...]:
    bidirectional = rest[-2]
    states = state if isinstance(state, list | tuple) else [state]
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return (sequences.new_empty((*sequences.shape[:2], width)), *(torch.empty_like(each) for each in states))
