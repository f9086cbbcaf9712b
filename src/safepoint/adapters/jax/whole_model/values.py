"""What models are made of as JSON: plain values exactly, arrays by their names in the file, and names for what is code.

| Value | JSON |
|---|---|
| None, bool, int, float, complex, str, bytes | as every value of safepoint's |
| list | a list |
| tuple, dictionary | {"tuple": [...]}, {"dict": [[key, value], ...]} |
| array, typed key | {"leaf": name} |
| np.dtype, jnp.float32 | {"dtype": "float32"}, {"scalar": "float32"} |
| class, function | {"name": "jax.nn.relu"} |
| functools.partial | {"partial": [name, [...], [[key, value], ...]]} |
| named tuple, dataclass | {"object": [class, [[field, value], ...]]} |
| Equinox or Linen module | {"module": [class, [[field, value], ...]]} |
| nnx.Rngs | {"rngs": [name of a stream, ...]} |
| a default of the class's own constructor | {"default": parameter} |

Invariant: decoding calls nothing but allowed classes, and of modules none but Linen's, which keep what they are given.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safepoint.adapters.jax.graph.inputs import is_array
from safepoint.adapters.jax.trees import spell
from safepoint.adapters.jax.whole_model.names import Names, is_module, is_record, name_of
from safepoint.codec import decode_value, encode_value
from safepoint.errors import CorruptionError, MismatchError, SafepointError, UnsupportedError
from safepoint.tree import dtype_name, is_value, join_name

MAX_DEPTH = 100
_SCALARS = {name: getattr(jnp, name) for name in vars(jnp) if isinstance(vars(jnp)[name], type(jnp.float32))}


def encode(value: Any, named: dict[str, Any], path: str = "", depth: int = 0) -> Any:
    """The JSON form of a value.

    Args:
        value: what to write down.
        named: takes what is named, by its name.
        path: of it in the model, as names of tensors are spelled.
        depth: of it.

    Raises:
        UnsupportedError: it cannot be kept; says what it is.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"{path} is nested deeper than {MAX_DEPTH} levels")
    if is_array(value):
        return {"leaf": path}
    if is_value(value):
        return encode_value(value)
    if type(value) in {list, tuple}:
        items = [encode(item, named, join_name(path, str(i)), depth + 1) for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [encode(k, named), encode(v, named, join_name(path, spell(k)), depth + 1)] for k, v in value.items()
            ]
        }
    if isinstance(value, np.dtype):
        return {"dtype": dtype_name(value)}
    scalar = next((name for name, kind in _SCALARS.items() if kind is value), None)
    if scalar is not None:
        return {"scalar": scalar}
    if is_module(type(value)) and hasattr(type(value), "__dataclass_fields__"):
        return {"module": [_name(type(value), named, path), _fields(value, named, path, depth)]}
    if is_record(type(value)):
        return {"object": [_name(type(value), named, path), _fields(value, named, path, depth)]}
    if type(value) is functools.partial:
        given = [encode(item, named, path, depth + 1) for item in value.args]
        return {"partial": [_name(value.func, named, path), given, _pairs(value.keywords.items(), named, path, depth)]}
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and type(value) is nnx.Rngs:
        return {"rngs": [name for name, stream in vars(value).items() if isinstance(stream, nnx.RngStream)]}
    return {"name": _name(value, named, path)}


def decode(data: Any, names: Names, leaf: Callable[[str], Any], depth: int = 0) -> Any:
    """The value that `encode` wrote; `leaf` gives arrays by their names.

    Raises:
        UntrustedError: it names what nobody allowed.
        MismatchError: a class has other fields than it had.
        CorruptionError: nothing that `encode` writes.
    """
    if depth > 3 * MAX_DEPTH:
        raise CorruptionError(f"the structure in {names.where} is nested too deep", file=names.where)
    if isinstance(data, list):
        return [decode(item, names, leaf, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        return decode_value(data)
    ((tag, content),) = data.items()
    try:
        return _tagged(tag, content, names, lambda item: decode(item, names, leaf, depth + 1), leaf)
    except SafepointError:
        raise
    except Exception as error:  # whatever the constructor of an allowed class raises, or a value that is none
        raise CorruptionError(f"{names.where}: no part of a model: {str(data)[:60]!r}", found=error) from error


def _tagged(tag: str, content: Any, names: Names, inner: Callable[[Any], Any], leaf: Callable[[str], Any]) -> Any:
    match tag, content:
        case "tuple", list():
            return tuple(inner(item) for item in content)
        case "dict", list():
            return {inner(key): inner(item) for key, item in content}
        case "leaf", str():
            return leaf(content)
        case "dtype", str():
            return np.dtype(getattr(jnp, content))
        case "scalar", str():
            return _SCALARS[content]
        case "name", str():
            return names.resolve(content)
        case "partial", [name, list(given), list(keywords)]:
            named = {inner(key): inner(item) for key, item in keywords}
            return functools.partial(names.resolve(name), *[inner(item) for item in given], **named)
        case "object", [name, list(fields)]:
            kind = names.resolve(name)
            if not is_record(kind):
                raise CorruptionError(f"{str(name)[:100]} is neither a named tuple nor a dataclass")
            return _record(kind, {str(key): inner(item) for key, item in fields})
        case "module", [name, list(fields)]:
            return _module(names.resolve(name), fields, inner, names.where)
        case "rngs", list():
            rngs = sys.modules["flax.nnx"].Rngs
            return rngs(**{str(name): 0 for name in content})
        case _:
            return decode_value({tag: content})


def _module(kind: Any, fields: list[Any], inner: Callable[[Any], Any], where: str) -> Any:
    if not is_module(kind) or not dataclasses.is_dataclass(kind):
        raise CorruptionError(f"{where} builds a module of {kind!r}, which is no class of modules", file=where)
    own = {field.name for field in dataclasses.fields(kind)}
    make: Any = kind
    given = {str(key): _default(kind, item) if _is_default(item) else inner(item) for key, item in fields}
    linen = sys.modules.get("flax.linen")
    if linen is not None and issubclass(make, linen.Module):
        if not given.keys() <= own - {"parent"}:
            raise _changed(kind, own, given)
        return make(**given)
    if given.keys() != own:
        raise _changed(kind, own, given)
    module: Any = object.__new__(make)  # as JAX itself puts one together again: no constructor runs
    for name, value in given.items():
        object.__setattr__(module, name, value)
    return module


def _record(kind: Any, fields: dict[str, Any]) -> Any:
    own = set(kind._fields) if issubclass(kind, tuple) else {f.name for f in dataclasses.fields(kind) if f.init}
    if fields.keys() != own:
        raise _changed(kind, own, fields)
    return kind(**fields)


def _fields(value: Any, named: dict[str, Any], path: str, depth: int) -> list[list[Any]]:
    linen = sys.modules.get("flax.linen")
    if isinstance(value, tuple):
        named_tuple: Any = value
        pairs = list(zip(named_tuple._fields, value, strict=True))
    elif linen is not None and isinstance(value, linen.Module):
        return _linen_fields(value, named, path, depth)
    else:
        fields = [f for f in dataclasses.fields(value) if f.init or is_module(type(value))]
        pairs = [(f.name, getattr(value, f.name)) for f in fields]
    found = []
    for name, item in pairs:
        default = _default_name(type(value), item) if is_module(type(value)) else None
        what = {"default": default} if default else encode(item, named, join_name(path, name), depth + 1)
        found.append([name, what])
    return found


def _linen_fields(value: Any, named: dict[str, Any], path: str, depth: int) -> list[list[Any]]:
    """Those that are not their defaults; a module inside another has its name and parent from there."""
    found = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name, None)
        if field.name in {"parent", "name"} or not field.init or item is field.default:
            continue
        if field.name.endswith("_init") and name_of(item) is None and callable(item):
            continue  # it makes new parameters, which are in the file: a default will do
        found.append([field.name, encode(item, named, join_name(path, field.name), depth + 1)])
    return found


def _default_name(kind: type, value: Any) -> str | None:
    """The parameter of a class's constructor whose default a function without a name is."""
    if not callable(value) or is_module(type(value)) or name_of(value) is not None:
        return None
    return next((p.name for p in inspect.signature(kind).parameters.values() if p.default is value), None)


def _is_default(item: Any) -> bool:
    return isinstance(item, dict) and item.keys() == {"default"}


def _default(kind: Any, item: Any) -> Any:
    found = inspect.signature(kind).parameters[item["default"]].default
    if found is inspect.Parameter.empty:
        raise ValueError(f"{kind.__name__} has no such default")
    return found


def _pairs(items: Iterable[tuple[Any, Any]], named: dict[str, Any], path: str, depth: int) -> list[Any]:
    return [[key, encode(item, named, path, depth + 1)] for key, item in items]


def _name(obj: Any, named: dict[str, Any], path: str) -> str:
    name = name_of(obj)
    if name is None:
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        raise UnsupportedError(f"{path or 'it'} is code without a name: {getattr(obj, '__name__', kind)[:60]} ({kind})")
    named[name] = obj
    return name


def _changed(kind: Any, own: set[str], given: Mapping[str, Any]) -> MismatchError:
    return MismatchError(
        f"{kind.__name__} has other fields than when the model was saved",
        missing=sorted(own - given.keys()),
        unexpected=sorted(given.keys() - own),
        expected=", ".join(sorted(own)),
        found=", ".join(sorted(given)),
        hint="use the version of the class that saved it, or load its graph",
    )


def array_of(leaf: Any, word: str, build: Callable[..., Any]) -> Any:
    """A new array (or typed key) with the content of a leaf, on the default device."""
    array = build(leaf, None, word)
    key = "jax.key."
    return jax.random.wrap_key_data(array, impl=word.removeprefix(key)) if word.startswith(key) else array
