"""Constructor arguments as JSON: plain values exactly, and names for what is code.

| Argument | JSON |
|---|---|
| None, bool, int, float, complex, str, bytes | as every value of safepoint's |
| list | a list |
| tuple, torch.Size, set, frozenset | {"tuple": [...]}, {"size": [...]}, {"set": [...]}, {"frozenset": [...]} |
| dict, OrderedDict | {"dict": [[key, value], ...]}, {"ordered": ...} |
| torch.dtype, range, slice | {"dtype": "torch.float32"}, {"range": [...]}, {"slice": [...]} |
| class, function | {"name": "torch.nn.ReLU"} |
| functools.partial | {"partial": [name, [...], [[key, value], ...]]} |
| dataclass, named tuple | {"object": [class, [[field, value], ...]]} |
| configuration of `transformers` | {"config": [class, {"dict": ...}]} |
| module | {"module": node} (see `describe`) |
| tensor, array | {"tensor": name}, {"array": name}: of a tensor in the file |

Invariant: decoding calls nothing but allowed classes, and only for "object".
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch

from safepoint.adapters.torch import tensors
from safepoint.adapters.torch.whole_model import hugging_face
from safepoint.adapters.torch.whole_model.names import Names, name_of
from safepoint.codec import decode_value, encode_value
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.tree import Tensor, is_value

MAX_DEPTH = 64
_LONGEST_RANGE = 1 << 20  # a few bytes of a file must not become a list that fills the memory
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "size": torch.Size,
    "set": set,
    "frozenset": frozenset,
}
_TAG_OF = {tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}


class Writer(Protocol):
    """What `encode` hands on: modules, and tensors that go into the file."""

    def module(self, module: Any) -> dict[str, Any]: ...
    def tensor(self, leaf: Tensor) -> str: ...


class Reader(Protocol):
    """What `decode` asks for."""

    names: Names

    def module(self, node: Any) -> Any: ...
    def tensor(self, name: str) -> Tensor: ...


def encode(value: Any, writer: Writer, depth: int = 0) -> Any:  # noqa: C901 — one line a kind
    """The JSON form of an argument.

    Raises:
        UnsupportedError: it cannot be kept; says what it is.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"nested deeper than {MAX_DEPTH} levels")
    if is_value(value):
        return encode_value(value)
    if type(value) is list:
        return [encode(item, writer, depth + 1) for item in value]
    if type(value) in _TAG_OF:
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return {_TAG_OF[type(value)]: [encode(item, writer, depth + 1) for item in items]}
    if type(value) in {dict, OrderedDict}:
        return {"dict" if type(value) is dict else "ordered": _pairs(value.items(), writer, depth)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, range) and abs(value.stop - value.start) > _LONGEST_RANGE:
        raise UnsupportedError(f"a range longer than {_LONGEST_RANGE:,}")
    if isinstance(value, range | slice):
        return {type(value).__name__: [value.start, value.stop, value.step]}
    if isinstance(value, torch.nn.Module):
        return {"module": writer.module(value)}
    if isinstance(value, torch.Tensor):
        return {"tensor": writer.tensor(tensors.leaf(value.detach()))}
    if type(value) is np.ndarray:
        return {"array": writer.tensor(Tensor.of(value))}
    if type(value) is functools.partial:
        arguments = [encode(item, writer, depth + 1) for item in value.args]
        return {"partial": [_name(value.func), arguments, _pairs(value.keywords.items(), writer, depth)]}
    if isinstance(value, type) or callable(value):
        return {"name": _name(value)}
    if hugging_face.is_config(value):
        return {"config": [_name(type(value)), encode(hugging_face.plain(value), writer, depth + 1)]}
    return {"object": [_name(type(value)), _pairs(_fields(value), writer, depth)]}


def decode(data: Any, reader: Reader, depth: int = 0) -> Any:
    """The argument that `encode` wrote.

    Raises:
        UntrustedError: it names what nobody allowed.
        CorruptionError: nothing that `encode` writes.
    """
    if depth > MAX_DEPTH:
        raise CorruptionError("a constructor's argument is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    if isinstance(data, list):
        return [decode(item, reader, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        return decode_value(data)
    ((tag, content),) = data.items()
    try:
        return _tagged(tag, content, reader, depth + 1)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CorruptionError(f"not an argument: {str(data)[:60]!r}", found=error) from error


def _tagged(tag: str, content: Any, reader: Reader, depth: int) -> Any:  # noqa: C901 — one case a kind
    match tag, content:
        case (("tuple" | "size" | "set" | "frozenset"), list()):
            return _SEQUENCES[tag](decode(item, reader, depth) for item in content)
        case (("dict" | "ordered"), list()):
            pairs = _decoded(content, reader, depth)
            return dict(pairs) if tag == "dict" else OrderedDict(pairs)
        case "dtype", str():
            return _DTYPES[content]
        case "range", [int(start), int(stop), int(step)] if abs(stop - start) <= _LONGEST_RANGE:
            return range(start, stop, step)
        case "slice", [start, stop, step] if all(x is None or isinstance(x, int) for x in content):
            return slice(start, stop, step)
        case "module", dict():
            return reader.module(content)
        case "tensor", str():
            return tensors.build(reader.tensor(content))
        case "array", str():
            return reader.tensor(content).numpy().copy()
        case "name", str():
            return reader.names.resolve(content)
        case "partial", [str(name), list(arguments), list(keywords)]:
            function = reader.names.resolve(name)
            given = [decode(item, reader, depth) for item in arguments]
            return functools.partial(function, *given, **dict(_decoded(keywords, reader, depth)))
        case "object", [str(name), list(fields)]:
            return _object(reader.names, name, dict(_decoded(fields, reader, depth)))
        case "config", [str(name), content]:
            return _configuration(reader.names, name, decode(content, reader, depth))
        case _:
            return decode_value({tag: content})


def _pairs(items: Iterable[tuple[Any, Any]], writer: Writer, depth: int) -> list[Any]:
    return [[encode(key, writer, depth + 1), encode(item, writer, depth + 1)] for key, item in items]


def _decoded(pairs: Any, reader: Reader, depth: int) -> list[tuple[Any, Any]]:
    return [(decode(key, reader, depth), decode(item, reader, depth)) for key, item in pairs]


def _name(obj: Any) -> str:
    name = name_of(obj)
    if name is None:
        raise UnsupportedError(
            f"a {type(obj).__name__} ({getattr(obj, '__name__', repr(obj))[:60]}), which is code without a name"
        )
    return name


def _fields(value: Any) -> list[tuple[str, Any]]:
    """What a configuration object is made of: a dataclass, a named tuple or a simple namespace."""
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    raise UnsupportedError(f"a {type(value).__name__}, which is neither plain data nor a dataclass")


def _object(names: Names, name: str, fields: dict[str, Any]) -> Any:
    kind = names.resolve(name)
    if isinstance(kind, types.FunctionType) or not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        raise CorruptionError(f"{name[:100]} is neither a dataclass nor a named tuple")
    return kind(**fields)


def _configuration(names: Names, name: str, data: Any) -> Any:
    kind = names.resolve(name)
    if not (isinstance(kind, type) and hugging_face.is_config_class(kind)) or not isinstance(data, dict):
        raise CorruptionError(f"{name[:100]} is no configuration")
    return hugging_face.configured(kind, data, names.where)
