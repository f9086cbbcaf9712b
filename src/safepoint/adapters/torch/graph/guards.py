"""Conditions on the sizes of inputs under which a traced graph is what the model computes.

A condition is JSON: an integer, `{"size": [input, axis]}`, or `[operator, ...]` of such. PyTorch gives them as Python
text at save time; that text is only parsed, and never kept or run.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

from safepoint.errors import UnsupportedError

_INT64 = 1 << 63
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NODES = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.And: "and",
    ast.Or: "or",
}


def parse(text: str, inputs: Mapping[str, int | None]) -> Any:
    """The condition in a text of PyTorch's, or None where it is about a constant.

    Args:
        text: such as `L['x'].size()[0] % 2 == 0`.
        inputs: `L['x']` → the number of the input; None for constants, which are compared anyway.

    Raises:
        UnsupportedError: it says more than this can.
    """
    try:
        return _parsed(ast.parse(text, mode="eval").body, inputs)
    except _AboutConstant:
        return None
    except (SyntaxError, KeyError, ValueError) as error:
        raise UnsupportedError(f"the graph holds only if {text[:200]}", hint="this condition cannot be kept") from error


class _AboutConstant(Exception):  # noqa: N818 — no error
    pass


def _parsed(node: ast.AST, inputs: Mapping[str, int | None]) -> Any:
    match node:
        case ast.Constant(int(value)):
            return int(value)
        case ast.UnaryOp(ast.USub(), operand):
            return ["-", 0, _parsed(operand, inputs)]
        case ast.UnaryOp(ast.Not(), operand):
            return ["not", _parsed(operand, inputs)]
        case ast.BinOp(left, kind, right):
            return [_NODES[type(kind)], _parsed(left, inputs), _parsed(right, inputs)]
        case ast.Compare(left, kinds, others):
            parts = [_parsed(part, inputs) for part in (left, *others)]
            pairs = [[_NODES[type(k)], *pair] for k, pair in zip(kinds, pairwise(parts), strict=True)]
            return pairs[0] if len(pairs) == 1 else ["and", *pairs]
        case ast.BoolOp(kind, values):
            return [_NODES[type(kind)], *(_parsed(value, inputs) for value in values)]
        case ast.Call(ast.Name("max" | "min" as name), arguments, []):
            return [name, *(_parsed(argument, inputs) for argument in arguments)]
        case ast.Subscript(ast.Call(ast.Attribute(source, "size"), [], []), ast.Constant(int(axis))):
            return {"size": [_input(source, inputs), axis]}
        case _:
            _ = _input(node, inputs)
            raise ValueError(ast.dump(node))


def _input(node: ast.AST, inputs: Mapping[str, int | None]) -> int:
    number = inputs[ast.unparse(node)]
    if number is None:
        raise _AboutConstant
    return number


def check(condition: Any, shapes: Sequence[int | None], depth: int = 0) -> None:
    """Whether a condition is one; `shapes` has the number of axes of each input, None for constants.

    Raises:
        ValueError: it is none.
    """
    if depth > 16:
        raise ValueError("a condition is nested too deep")
    match condition:
        case bool():
            raise ValueError("a condition is no comparison")
        case int():
            return
        case {"size": [int(number), int(axis)], **rest} if not rest and 0 <= number < len(shapes):
            axes = shapes[number]
            if axes is not None and 0 <= axis < axes:
                return
        case [str(name), *parts] if _arity(name, len(parts)):
            for part in parts:
                check(part, shapes, depth + 1)
            return
    raise ValueError(f"a condition is {str(condition)[:60]}")


def _arity(name: str, count: int) -> bool:
    if name in {"and", "or", "max", "min"}:
        return count >= 1
    return count == (1 if name == "not" else 2) and (name == "not" or name in _ARITHMETIC or name in _COMPARISONS)


def holds(condition: Any, shapes: Sequence[Any]) -> Any:
    """The value of a checked condition for inputs of these shapes; False where it cannot be computed."""
    try:
        return _value(condition, shapes)
    except (ZeroDivisionError, OverflowError):
        return False


def _value(condition: Any, shapes: Sequence[Any]) -> Any:
    if isinstance(condition, int):
        return condition
    if isinstance(condition, dict):
        number, axis = condition["size"]
        return shapes[number][axis]
    name, *parts = condition
    if name == "and":
        return all(_value(part, shapes) for part in parts)
    if name == "or":
        return any(_value(part, shapes) for part in parts)
    values = [_value(part, shapes) for part in parts]
    if name == "not":
        return not values[0]
    if name in _COMPARISONS:
        return _COMPARISONS[name](*values)
    result = reduce(_ARITHMETIC[name], values)
    if not -_INT64 <= result < _INT64:
        raise OverflowError
    return result


def spell(condition: Any, names: Sequence[str]) -> str:
    """A condition for people: `x.shape[0] % 2 == 0`."""
    if isinstance(condition, int):
        return str(condition)
    if isinstance(condition, dict):
        number, axis = condition["size"]
        return f"{names[number]}.shape[{axis}]"
    name, *parts = condition
    texts = [
        f"({spell(p, names)})" if isinstance(p, list) and p[0] not in {"max", "min"} else spell(p, names) for p in parts
    ]
    if name in {"max", "min"}:
        return f"{name}({', '.join(texts)})"
    return f"not {texts[0]}" if name == "not" else f" {name} ".join(texts)
