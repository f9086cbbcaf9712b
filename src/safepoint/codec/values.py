"""Values and skeletons as JSON, exactly: plain where JSON says it exactly, a tagged object where it does not.

| Value | JSON |
|---|---|
| None, bool, str, int in 64 bits, finite float | itself (a float always has a point or an exponent) |
| other int | {"int": "0x123..."} |
| other float | {"float": "nan"}, {"float": "inf"}, {"float": "-inf"} |
| complex | {"complex": [real, imag]} |
| bytes | {"bytes": "<base64>"} |
| str with lone surrogates | {"str": "<base64 of UTF-8, surrogates passed>"} |
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.limits import MAX_DEPTH
from safepoint.tree import Branch, LeafRef, Node, Value

_BRANCH = {"kind", "keys", "children"}
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_value(value: Value) -> Any:
    """The JSON form of a value; `decode_value` gives back an equal one of the same type."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else {"int": _digits(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [encode_value(value.real), encode_value(value.imag)]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def decode_value(data: Any) -> Value:
    """The value that `encode_value` wrote.

    Raises:
        CorruptionError: nothing that it writes.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    try:
        ((tag, content),) = data.items()
        if tag == "int":
            return _from_digits(content)
        if tag == "float":
            return _NON_FINITE[content]
        if tag == "complex":
            real, imag = (float(decode_value(part)) for part in content)  # type: ignore[arg-type]
            return complex(real, imag)
        if tag == "bytes":
            return base64.b64decode(content, validate=True)
        if tag == "str":
            return base64.b64decode(content, validate=True).decode("utf-8", "surrogatepass")
    except (AttributeError, TypeError, ValueError, KeyError, binascii.Error) as error:
        raise CorruptionError(f"not a value: {str(data)[:60]!r}", found=error) from error
    raise UnsupportedError(f"values tagged {tag!r} are not known to this version", hint="update safepoint")


def encode_node(node: Node) -> Any:
    """The JSON form of a skeleton: [name] or [name, kind] for a leaf, an object for a branch."""
    if isinstance(node, LeafRef):
        return [node.name, node.kind] if node.kind else [node.name]
    branch: dict[str, Any] = {"kind": node.kind}
    if node.keys:
        branch["keys"] = list(map(encode_value, node.keys))
    if node.children:
        branch["children"] = [encode_node(child) for child in node.children]
    return branch


def decode_node(data: Any, depth: int = 0) -> Node:
    """The skeleton that `encode_node` wrote.

    Raises:
        CorruptionError: nothing that it writes, or nested too deep.
    """
    if depth > MAX_DEPTH:
        raise CorruptionError("skeleton is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    if type(data) is list:  # no `match`: there are as many of these as leaves
        if 1 <= len(data) <= 2 and type(data[0]) is type(data[-1]) is str:
            return LeafRef(*data)
    elif isinstance(data, dict) and isinstance(kind := data.get("kind"), str) and data.keys() <= _BRANCH:
        keys, children = data.get("keys", []), data.get("children", [])
        if isinstance(keys, list) and isinstance(children, list):
            nodes = tuple([decode_node(child, depth + 1) for child in children])
            return Branch(kind, tuple([key if type(key) is str else decode_value(key) for key in keys]), nodes)
    raise CorruptionError(f"not a skeleton: {str(data)[:60]!r}")


def _digits(value: int) -> str:
    return hex(value)  # decimal of a huge integer takes quadratic time, and CPython limits it


def _from_digits(text: str) -> int:
    if not text.lstrip("-").startswith("0x"):
        raise ValueError(f"expected hexadecimal, found {text[:20]!r}")
    return int(text, 16)
