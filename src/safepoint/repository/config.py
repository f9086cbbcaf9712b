"""The caller's configuration and metrics as JSON: plain nested values, exact.

A dictionary is `{"dict": [[key, value], ...]}`, a list or tuple `{"list": [...]}`; the rest is as in `codec.values`.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from safepoint.codec import decode_value, encode_value
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.limits import MAX_CONFIG_DEPTH
from safepoint.tree import is_value


def encode_config(config: Any, path: str = "config", depth: int = 0) -> Any:
    """Plain nested values as JSON; paths as text, namespaces and dataclasses as dictionaries, tuples as lists.

    Raises:
        UnsupportedError: something else is inside, or it is nested too deep; named by its path.
    """
    if depth > MAX_CONFIG_DEPTH:
        raise UnsupportedError(f"{path[:60]}... is nested too deep", expected=f"at most {MAX_CONFIG_DEPTH} levels")
    config = _plain(config)
    if isinstance(config, Mapping):
        keys = [str(key) for key in config]
        if len(set(keys)) != len(keys):
            raise UnsupportedError(f"{path} has two keys of the same text", found=", ".join(keys)[:200])
        return {
            "dict": [
                [k, encode_config(v, f"{path}.{k}", depth + 1)] for k, v in zip(keys, config.values(), strict=True)
            ]
        }
    if isinstance(config, list | tuple):
        return {"list": [encode_config(value, f"{path}[{n}]", depth + 1) for n, value in enumerate(config)]}
    if is_value(config):
        return encode_value(config)
    raise UnsupportedError(f"{path} cannot be kept: {type(config).__name__}", expected="plain values, dicts and lists")


def decode_config(data: Any, depth: int = 0) -> Any:
    """What `encode_config` wrote, as dictionaries and lists.

    Raises:
        CorruptionError: nothing that it writes.
    """
    if depth > MAX_CONFIG_DEPTH:
        raise CorruptionError("config is nested too deep", expected=f"at most {MAX_CONFIG_DEPTH} levels")
    match data:
        case {"dict": [*items], **rest} if not rest and all(_is_item(item) for item in items):
            return {key: decode_config(value, depth + 1) for key, value in items}
        case {"list": [*items], **rest} if not rest:
            return [decode_config(value, depth + 1) for value in items]
        case _:
            return decode_value(data)


def number(name: str, value: Any) -> float:
    """A metric's value.

    Raises:
        UnsupportedError: it is no number, or its name is no text.
    """
    if type(name) is not str or any("\ud800" <= c <= "\udfff" for c in name):
        raise UnsupportedError(f"{name!r} is not a name of a metric", expected="text")
    detach = getattr(value, "detach", None)  # torch warns when a loss that still has its graph becomes a number
    try:
        return float(detach() if callable(detach) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedError(f"metric {name!r} is not a number", found=type(value).__name__) from error


def encode_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """[name, number] pairs in order."""
    return [(name, encode_value(number(name, value))) for name, value in metrics.items()]


def decode_metrics(pairs: list[tuple[str, Any]]) -> dict[str, float]:
    """What `encode_metrics` wrote.

    Raises:
        CorruptionError: nothing that it writes.
    """
    metrics: dict[str, float] = {}
    for name, data in pairs:
        value = decode_value(data)
        if type(value) not in {int, float}:
            raise CorruptionError(f"metric {name!r} is not a number", found=type(value).__name__)
        metrics[name] = number(name, value)
    return metrics


def _plain(config: Any) -> Any:
    """What stands for a path, a NumPy scalar, a subclass of a plain type, a namespace or a dataclass."""
    if isinstance(config, enum.Enum):
        return _plain(config.value)
    if isinstance(config, os.PathLike):
        return os.fspath(config)
    if isinstance(config, np.generic):
        return config.item()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for kind in (int, float, complex, str, bytes):
        if isinstance(config, kind):  # of a subclass only the plain value
            return config if is_value(config) else kind(config)  # type: ignore[arg-type]
    namespace = not isinstance(config, type | types.ModuleType | list | tuple | Mapping) and not callable(config)
    return vars(config) if namespace and hasattr(config, "__dict__") else config


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
