"""A graph made ready to run: steps over numbered slots. No Python source is generated, so none can be slipped in.

Invariant: every operator was resolved, and every reference found to look back, before a program exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, final

import torch

from safepoint.adapters.torch.graph import arguments, operators, trees
from safepoint.adapters.torch.graph.arguments import Device, Ref
from safepoint.adapters.torch.graph.schema import GraphDocument
from safepoint.errors import CorruptionError, MismatchError

_OPTIONS = frozenset({"dtype", "layout", "format"})
_Pick = Callable[[Any], tuple[Any, ...]]


class Step(NamedTuple):
    """`slots[out] = function(*pick(slots), **names…)`; then what nothing needs any more is let go."""

    function: Callable[..., Any]
    pick: _Pick
    names: tuple[str, ...]
    pick_named: _Pick
    out: int
    dead: tuple[int, ...]


@final
class Program:
    """The steps of a graph. It is never changed, so copies of a model share it.

    Slots hold the values of the document by their numbers, and behind them constants and lists that hold values.

    Raises:
        UntrustedError: it calls what no graph may call.
        MismatchError: this torch has other operators.
        CorruptionError: it refers to what is not there.
    """

    def __init__(self, document: GraphDocument, where: str, mapped: frozenset[Any]) -> None:
        """`mapped`: the floating-point dtypes of the model's tensors, which stand for what these are at a call."""
        self._where = where
        self._mapped = mapped
        self._first = len(document.tensors) + len(document.inputs)
        self._slots: list[Any] = [None] * (self._first + len(document.nodes))
        self._devices: list[tuple[int, str]] = []
        self._dtypes: list[tuple[int, Any]] = []
        self._raw: list[tuple[Callable[..., Any], list[int], dict[str, int], int]] = []
        self._labels: list[str] = []
        functions = {target: operators.resolve(target, where) for target, _, _ in document.nodes}
        for number, (target, args, kwargs) in enumerate(document.nodes, self._first):
            _check_call(target, functions[target], args, kwargs, where)
            self._known = number
            picked = [self._argument(argument, target) for argument in args]
            named = {name: self._argument(argument, target) for name, argument in kwargs.items()}
            self._step(functions[target], picked, named, number, target)
        self._known = self._first + len(document.nodes)
        try:
            self._outputs = trees.decode(document.outputs, lambda leaf: Ref(self._argument(leaf, "the result")))
        except (ValueError, RecursionError) as error:
            raise self._damaged("the result", error) from error
        self._steps = _buried(self._raw, keep=set(_numbers(self._outputs)), tensors=len(document.tensors))
        del self._raw

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def run(self, tensors: Sequence[Any], inputs: Sequence[Any], device: Any, dtype_of: Callable[[Any], Any]) -> Any:
        """The results, in the nesting in which the model gives them.

        Args:
            tensors: the model's, in the document's order.
            inputs: checked, in the document's order.
            device: where what the graph makes is made.
            dtype_of: a dtype of the model's tensors when it was traced → what it is now.
        """
        slots = self._slots.copy()
        slots[: self._first] = [*tensors, *inputs]
        for slot, place in self._devices:
            slots[slot] = device if place == "model" else torch.device(place)
        for slot, dtype in self._dtypes:
            slots[slot] = dtype_of(dtype)
        done = 0
        try:
            for function, pick, names, pick_named, out, dead in self._steps:
                if names:
                    slots[out] = function(*pick(slots), **dict(zip(names, pick_named(slots), strict=True)))
                else:
                    slots[out] = function(*pick(slots))
                for slot in dead:
                    slots[slot] = None
                done += 1
        except Exception as error:
            error.add_note(f"in step {done} of the graph in {self._where}: {self._labels[done]}")
            raise
        return _gathered(self._outputs, slots)

    def _argument(self, data: Any, target: str) -> int:
        """The slot that holds an argument when its step runs."""
        try:
            return self._slot(arguments.decode(data, self._reference))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(target, error) from error

    def _slot(self, value: Any) -> int:
        if isinstance(value, Ref):
            return value.number
        if isinstance(value, list) and any(not _is_constant(item, self._mapped) for item in value):
            items = [self._slot(item) for item in value]
            return self._step(_listed, items, {}, self._new(None), "a list")
        slot = self._new(value)
        if isinstance(value, Device):
            self._devices.append((slot, value.place))
        elif isinstance(value, torch.dtype) and value in self._mapped:
            self._dtypes.append((slot, value))
        return slot

    def _new(self, value: Any) -> int:
        self._slots.append(value)
        return len(self._slots) - 1

    def _step(
        self, function: Callable[..., Any], picked: list[int], named: dict[str, int], out: int, label: str
    ) -> int:
        self._raw.append((function, picked, named, out))
        self._labels.append(label)
        return out

    def _reference(self, number: Any) -> Ref:
        if type(number) is not int or not 0 <= number < self._known:
            raise ValueError(f"it refers to {str(number)[:60]}, which does not come before it")
        return Ref(number)

    def _damaged(self, target: str, error: Exception) -> CorruptionError:
        return CorruptionError(f"the graph in {self._where} is none: {target[:100]}: {error}", file=self._where)


def _check_call(target: str, function: Any, args: list[Any], names: dict[str, Any], where: str) -> None:
    """Whether an operator of this torch takes such arguments at all."""
    count = len(args)
    if not isinstance(function, torch._ops.OpOverload):
        if names:
            raise CorruptionError(f"the graph in {where} gives {target} names", file=where)
        return
    parts = function._schema.arguments
    positional = [part.name for part in parts if not part.kwarg_only]
    given = {*positional[:count], *names}
    needed = {part.name for part in parts if not part.has_default_value()}
    if count > len(positional) or len(given) != count + len(names) or not needed <= given <= {p.name for p in parts}:
        raise MismatchError(
            f"the graph in {where} calls {target} as torch {torch.__version__} does not",
            expected=function._schema,
            found=f"{count} by position, and {', '.join(names) or 'nothing'} by name",
            hint="use the version of torch that saved it",
        )
    for part, argument in [*zip(parts, args, strict=False), *((part, names.get(part.name)) for part in parts)]:
        # To torch a dtype is a number; one that is none of them ends the process.
        is_option = any(kind in str(part.real_type) for kind in ("ScalarType", "Layout", "MemoryFormat"))
        if is_option and argument is not None and not (isinstance(argument, dict) and argument.keys() <= _OPTIONS):
            raise CorruptionError(f"the graph in {where} gives {target} a {part.name} that is none", file=where)


def _is_constant(value: Any, mapped: frozenset[Any]) -> bool:
    if isinstance(value, list):
        return all(_is_constant(item, mapped) for item in value)
    return not isinstance(value, Ref | Device) and not (isinstance(value, torch.dtype) and value in mapped)


def _buried(
    raw: list[tuple[Callable[..., Any], list[int], dict[str, int], int]], keep: set[int], tensors: int
) -> tuple[Step, ...]:
    """The steps, each of which lets go of what no later one reads: memory is that of the largest moment."""
    read = set(keep)
    steps: list[Step] = []
    for function, picked, named, out in reversed(raw):
        slots = {*picked, *named.values(), out}
        dead = tuple(sorted(slot for slot in slots - read if slot >= tensors))
        read |= slots
        steps.append(Step(function, _picker(picked), tuple(named), _picker([*named.values()]), out, dead))
    return tuple(reversed(steps))


def _picker(slots: list[int]) -> _Pick:
    if len(slots) == 1:
        only = slots[0]
        return lambda values: (values[only],)
    return itemgetter(*slots) if slots else _nothing


def _nothing(_values: Any) -> tuple[Any, ...]:
    return ()


def _listed(*items: Any) -> list[Any]:
    return [*items]


def _numbers(tree: Any) -> list[int]:
    if isinstance(tree, Ref):
        return [tree.number]
    return [n for part in (tree.values() if isinstance(tree, dict) else tree) for n in _numbers(part)]


def _gathered(tree: Any, slots: list[Any]) -> Any:
    if isinstance(tree, Ref):
        return slots[tree.number]
    if isinstance(tree, dict):
        return type(tree)((key, _gathered(part, slots)) for key, part in tree.items())
    return type(tree)(_gathered(part, slots) for part in tree)
