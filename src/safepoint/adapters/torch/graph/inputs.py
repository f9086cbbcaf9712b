"""What a call of a graph may bring, and whether a call does.

Invariant: nothing of the graph runs before every input was found to be one that it was traced for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from safepoint.adapters.torch.graph import guards, trees
from safepoint.adapters.torch.graph.schema import GraphDocument, GraphInput, GraphSize
from safepoint.errors import MismatchError


@final
@dataclass(frozen=True, slots=True)
class Leaf:
    """The number of an input, where a tree of arguments has one."""

    number: int


def flatten(value: Any, expected: Any, place: str) -> list[tuple[int, Any]]:
    """(number of the input, what a call brings for it), where `expected` is a decoded tree of `Leaf`s.

    Raises:
        MismatchError: another nesting.
    """
    if isinstance(expected, Leaf):
        return [(expected.number, value)]
    if isinstance(expected, dict):
        if not isinstance(value, Mapping) or value.keys() != expected.keys():
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise MismatchError(f"{place} has other keys", expected=", ".join(expected) or "none", found=found)
        return [pair for key, part in expected.items() for pair in flatten(value[key], part, f"{place}[{key!r}]")]
    if not isinstance(value, list | tuple) or len(value) != len(expected):
        found = f"{len(value)}" if isinstance(value, list | tuple) else type(value).__name__
        raise MismatchError(f"{place} has another length", expected=len(expected), found=found)
    return [p for i, part in enumerate(expected) for p in flatten(value[i], part, f"{place}[{i}]")]


@final
class Signature:
    """The arguments of a graph: how a call gives them, and what each must be.

    Raises:
        ValueError: the document contradicts itself.
    """

    def __init__(self, document: GraphDocument) -> None:
        self._inputs = document.inputs
        self._sizes = document.sizes
        self._guards = document.guards
        self._positional = [trees.decode(tree, self._leaf) for tree in document.positional]
        self._keyword = {name: trees.decode(tree, self._leaf) for name, tree in document.keyword.items()}
        self._names = document.names
        if len(self._names) != len(self._positional) or len({*self._names, *self._keyword}) != len(
            [*self._names, *self._keyword]
        ):
            raise ValueError("names and arguments do not fit")
        numbers = [n for tree in (self._positional, self._keyword) for n in _numbers(tree)]
        if sorted(numbers) != list(range(len(self._inputs))):
            raise ValueError("inputs and arguments do not fit")
        for item in self._inputs:
            if (item.shape is None) != (item.dtype is None) or (item.shape and item.constant is not None):
                raise ValueError(f"the input {item.name[:60]!r} is neither a tensor nor a constant")
            if any(isinstance(size, str) and size not in self._sizes for size in item.shape or ()):
                raise ValueError(f"the input {item.name[:60]!r} has a size that is not described")
        if any(isinstance(size.one, str) and size.one not in self._sizes for size in self._sizes.values()):
            raise ValueError("a size goes with one that is not described")
        axes = [None if item.shape is None else len(item.shape) for item in self._inputs]
        for condition in self._guards:
            guards.check(condition, axes)

    def _leaf(self, data: Any) -> Leaf:
        if isinstance(data, dict) and data.keys() == {"input"} and type(data["input"]) is int:
            return Leaf(data["input"])
        raise ValueError(f"an argument is {str(data)[:60]}")

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype_of: Callable[[str], Any]) -> list[Any]:
        """The inputs of the graph, in order, of a call that fits.

        Args:
            args: given by position.
            kwargs: given by name, as the model's own `forward` calls them.
            dtype_of: what a tensor of a dtype must be now.

        Raises:
            MismatchError: the call does not fit; says which argument, and what is expected.
        """
        expected = dict(zip(self._names, self._positional, strict=True)) | self._keyword
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        if len(args) > len(self._names) or len(given) != len(args) + len(kwargs) or given.keys() - expected.keys():
            raise self._arguments(args, kwargs)
        absent = expected.keys() - given.keys()
        if any(self._inputs[n].shape is not None for name in absent for n in _numbers(expected[name])):
            raise self._arguments(args, kwargs)
        found: list[Any] = [item.constant for item in self._inputs]
        for name in given:
            for number, value in flatten(given[name], expected[name], name):
                found[number] = value
        sizes: dict[str, int] = {}
        for item, value in zip(self._inputs, found, strict=True):
            _check(item, value, sizes, dtype_of)
        self._check_sizes(sizes, found)
        return found

    def _check_sizes(self, sizes: Mapping[str, int], found: list[Any]) -> None:
        for name, value in sizes.items():
            size = self._sizes[name]
            in_range = size.min <= value and (size.max is None or value <= size.max)
            if not in_range and not (value == 1 and self._may_be_one(size, sizes)):
                where = next(
                    f"{item.name}.shape[{(item.shape or []).index(name)}]"
                    for item in self._inputs
                    if name in (item.shape or [])
                )
                raise _unfit(f"{where} is {value}", f"{'1, or ' if size.one else ''}{size.min} to {size.max or 'any'}")
        if any(value == 1 and self._sizes[name].one for name, value in sizes.items()):
            return  # these are about 2 and more; 1 was tried when the model was saved
        shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else () for value in found]
        for condition in self._guards:
            if not guards.holds(condition, shapes):
                raise _unfit("the inputs' sizes", guards.spell(condition, [item.name for item in self._inputs]))

    def _may_be_one(self, size: GraphSize, now: Mapping[str, int]) -> bool:
        return size.one if isinstance(size.one, bool) else now.get(size.one) == 1

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MismatchError:
        return MismatchError(
            "the graph is called with other arguments than it was traced with",
            expected=", ".join([*self._names, *(f"{name}=" for name in self._keyword)]) or "none",
            found=", ".join([f"{len(args)} by position", *(f"{name}=" for name in kwargs)]),
        )


def _numbers(tree: Any) -> list[int]:
    if isinstance(tree, Leaf):
        return [tree.number]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [number for part in parts for number in _numbers(part)]


def _check(item: GraphInput, value: Any, sizes: dict[str, int], dtype_of: Callable[[str], Any]) -> None:
    if item.shape is None or item.dtype is None:
        if type(value) is not type(item.constant) or value != item.constant:
            raise _unfit(f"{item.name} is {repr(value)[:60]}", repr(item.constant))
        return
    if not isinstance(value, torch.Tensor):
        raise _unfit(f"{item.name} is a {type(value).__name__}", f"a tensor of {item.dtype}")
    wanted = dtype_of(item.dtype)
    if value.dtype != wanted:
        raise _unfit(f"{item.name} is {value.dtype}", wanted)
    if value.dim() != len(item.shape):
        raise _unfit(f"{item.name} has the shape {tuple(value.shape)}", f"{len(item.shape)} axes")
    for axis, (size, is_now) in enumerate(zip(item.shape, value.shape, strict=True)):
        expected = sizes.setdefault(size, is_now) if isinstance(size, str) else size
        if expected is not None and expected != is_now:
            raise _unfit(f"{item.name} has the shape {tuple(value.shape)}", f"{expected} along axis {axis}")


def _unfit(what: str, expected: object) -> MismatchError:
    return MismatchError(
        f"{what}, which the graph was not traced for",
        expected=expected,
        hint='another example_inputs= when saving, or form="class" when loading',
    )
