"""What a call of a graph may bring, and whether a call does.

Invariant: nothing of the graph runs before every input was found to be one that it was exported for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax
import numpy as np

from safepoint.adapters.jax import leaves
from safepoint.adapters.jax.graph import nesting
from safepoint.adapters.jax.graph.schema import GraphDocument, GraphInput
from safepoint.codec import decode_value
from safepoint.errors import MismatchError
from safepoint.tree import dtype_of


@final
@dataclass(frozen=True, slots=True)
class Leaf:
    """The number of an input or output, where a tree has one."""

    number: int


def tree(data: Any, word: str) -> Any:
    """A decoded tree of `Leaf`s.

    Raises:
        ValueError: nothing that `describe` writes.
    """

    def leaf(item: Any) -> Leaf:
        if isinstance(item, dict) and item.keys() == {word} and type(item[word]) is int:
            return Leaf(item[word])
        raise ValueError(f"a leaf is {str(item)[:60]}")

    return nesting.decode(data, leaf)


@final
class Signature:
    """The arguments of a graph: how a call gives them, and what each must be.

    Raises:
        ValueError: the document contradicts itself.
    """

    def __init__(self, document: GraphDocument) -> None:
        self._inputs = document.inputs
        self._shapes = [program.inputs for program in document.programs]
        self._arguments = document.arguments
        self._trees = [tree(argument.tree, "input") for argument in document.arguments]
        names = [argument.name for argument in document.arguments if argument.name is not None]
        if len({*names}) != len(names) or any(a.name is None and a.keyword_only for a in document.arguments):
            raise ValueError("an argument stands twice, or has no name")
        if sorted(leaf.number for leaf in nesting.leaves(self._trees)) != list(range(len(self._inputs))):
            raise ValueError("inputs and arguments do not fit")
        self._constants = [decode_value(item.constant) for item in self._inputs]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, list[Any]]:
        """Which program a call is for, and its array inputs in order.

        Raises:
            MismatchError: the call does not fit; says which argument, and what is expected.
        """
        found: list[Any] = list(self._constants)
        for position, value in self._given(args, kwargs).items():
            what = self._arguments[position].name or f"argument {position}"
            for number, item in _flatten(value, self._trees[position], what):
                found[number] = item
        arrays = [
            _array(item, value)
            for item, value in zip(self._inputs, found, strict=True)
            if item.dtype is not None or _check_constant(item, value)
        ]
        names = [item.name for item in self._inputs if item.dtype is not None]
        shapes = [array.shape for array in arrays]
        wrong = [_misfit(shapes, wanted) for wanted in self._shapes]
        if None in wrong:
            return wrong.index(None), arrays
        place = max(number for number in wrong if number is not None)
        accepted = {f"({', '.join(map(str, wanted[place]))})" for wanted in self._shapes}
        raise _unfit(f"{names[place]} has the shape {tuple(shapes[place])}", " or ".join(sorted(accepted)))

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Any]:
        positions = [n for n, argument in enumerate(self._arguments) if not argument.keyword_only]
        by_name = {argument.name: n for n, argument in enumerate(self._arguments) if argument.name is not None}
        given = dict(zip(positions, args, strict=False))
        named = {by_name[name]: value for name, value in kwargs.items() if name in by_name}
        absent = [n for n in range(len(self._arguments)) if n not in given and n not in named]
        needed = [n for n in absent if any(self._inputs[leaf.number].dtype for leaf in nesting.leaves(self._trees[n]))]
        if len(args) > len(positions) or len(named) != len(kwargs) or given.keys() & named.keys() or needed:
            raise MismatchError(
                "the graph is called with other arguments than it was exported with",
                expected=", ".join(a.name or f"argument {n}" for n, a in enumerate(self._arguments)) or "none",
                found=", ".join([f"{len(args)} by position", *(f"{name}=" for name in kwargs)]),
            )
        return {**given, **named}


def is_array(value: Any) -> bool:
    """Whether a leaf of the arguments is an input; all else is a constant of the graph."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _flatten(value: Any, expected: Any, place: str) -> list[tuple[int, Any]]:
    if isinstance(expected, Leaf):
        return [(expected.number, value)]
    if isinstance(expected, dict):
        if not isinstance(value, Mapping) or value.keys() != expected.keys():
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise _unfit(f"{place} has the keys {found}", ", ".join(map(str, expected)) or "none")
        return [pair for key, part in expected.items() for pair in _flatten(value[key], part, f"{place}/{key}")]
    if not isinstance(value, list | tuple) or len(value) != len(expected):
        found = f"of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
        raise _unfit(f"{place} is a sequence {found}", f"one of {len(expected)}")
    return [pair for i, part in enumerate(expected) for pair in _flatten(value[i], part, f"{place}/{i}")]


def _array(item: GraphInput, value: Any) -> Any:
    """The array that the graph takes for what a call brings: exactly, or as a Python number that says no dtype."""
    assert item.dtype is not None
    if item.key is not None:
        if (
            not isinstance(value, jax.Array)
            or not leaves.is_key(value)
            or leaves.kind_of_array(value) != f"jax.key.{item.key}"
        ):
            raise _unfit(f"{item.name} is {_spell(value)}", f"a PRNG key of {item.key}")
        return jax.random.key_data(value)
    wanted = dtype_of(item.dtype)
    if isinstance(value, jax.Array) and leaves.is_key(value):
        raise _unfit(f"{item.name} is a PRNG key", f"an array of {item.dtype}")
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        value = np.asarray(value) if type(value) in {bool, int, float, complex} else value
        if not isinstance(value, np.ndarray) or not np.can_cast(value.dtype, wanted, "same_kind"):
            raise _unfit(f"{item.name} is {_spell(value)}", f"an array of {item.dtype}")
        return value.astype(wanted)
    narrowed = jax.dtypes.canonicalize_dtype(value.dtype)  # what JAX makes of NumPy's float64
    if narrowed != wanted:
        raise _unfit(f"{item.name} is {value.dtype}", item.dtype)
    return value if value.dtype == wanted else np.asarray(value).astype(wanted)


def _check_constant(item: GraphInput, value: Any) -> bool:
    wanted = decode_value(item.constant)
    if type(value) is not type(wanted) or value != wanted:
        raise _unfit(f"{item.name} is {_spell(value)}", repr(wanted))
    return False


def _misfit(shapes: Sequence[tuple[int, ...]], wanted: Sequence[Sequence[int | str]]) -> int | None:
    """The position of the first shape that does not fit, or None. What is equal by name is equal in size."""
    sizes: dict[str, int] = {}
    for number, (shape, expected) in enumerate(zip(shapes, wanted, strict=True)):
        if len(shape) != len(expected):
            return number
        for size, each in zip(shape, expected, strict=True):
            known = sizes.setdefault(each, size) if isinstance(each, str) else each
            if known != size or (isinstance(each, str) and size < 1):
                return number
    return None


def _spell(value: Any) -> str:
    return f"{value!r}"[:60] if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"


def _unfit(what: str, expected: object) -> MismatchError:
    return MismatchError(
        f"{what}, which the graph was not exported for",
        expected=expected,
        hint='another example_inputs= when saving, or form="class" when loading',
    )
