"""Arguments of operators ↔ JSON.

Invariant: a decoded argument is a reference, a plain value or an option of torch that is looked up in a fixed table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from safepoint.adapters.torch import tensors
from safepoint.codec import decode_value, encode_value
from safepoint.errors import SafepointError, UnsupportedError
from safepoint.tree import is_value

_LAYOUTS = {"strided": torch.strided}
_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_MAX_TEXT = 10_000


@final
@dataclass(frozen=True, slots=True)
class Ref:
    """The value of this number."""

    number: int


@final
@dataclass(frozen=True, slots=True)
class Device:
    """Where the model is, or the CPU."""

    place: Literal["model", "cpu"]


def encode(argument: Any, written: Callable[[Any], Any], device: Any) -> Any:
    """The JSON of an argument; `written` gives that of a node, `device` is where the model was traced.

    Raises:
        UnsupportedError: it has none.
    """
    if isinstance(argument, torch.fx.Node):
        return written(argument)
    if isinstance(argument, list | tuple):
        return [encode(item, written, device) for item in argument]
    if isinstance(argument, torch.dtype):
        return {"dtype": tensors.name_of(argument)}
    if isinstance(argument, torch.device):
        if argument.type == device.type:
            return {"device": "model"}
        if argument.type == "cpu":
            return {"device": "cpu"}
    if isinstance(argument, torch.layout) and argument in _LAYOUTS.values():
        return {"layout": "strided"}
    if isinstance(argument, torch.memory_format):
        return {"format": next(name for name, known in _FORMATS.items() if known == argument)}
    if is_value(argument) and not isinstance(argument, bytes):
        return encode_value(argument)
    raise UnsupportedError(f"an operator has the argument {str(argument)[:60]!r} ({type(argument).__name__})")


def decode(data: Any, reference: Callable[[int], Any]) -> Any:
    """The argument; `reference(number)` is called for each reference.

    Raises:
        ValueError: nothing that `encode` writes.
    """
    if isinstance(data, list):
        return [decode(item, reference) for item in data]
    if isinstance(data, dict):
        if len(data) != 1:
            raise ValueError(f"an argument is {str(data)[:60]}")
        ((tag, content),) = data.items()
        if tag == "value":
            return reference(content)
        known: dict[str, dict[str, Any]] = {"layout": _LAYOUTS, "format": _FORMATS}
        if tag in known and isinstance(content, str) and content in known[tag]:
            return known[tag][content]
        if tag == "dtype" and isinstance(content, str) and tensors.dtype_called(content) is not None:
            return tensors.dtype_called(content)
        if tag == "device" and content in ("model", "cpu"):
            return Device(content)
        if tag not in ("float", "complex"):
            raise ValueError(f"an argument is {str(data)[:60]}")
    try:
        value = decode_value(data)
    except SafepointError as error:
        raise ValueError(f"an argument is {str(data)[:60]}") from error
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise ValueError("a text is too long")
    return value
