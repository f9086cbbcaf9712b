"""A live model → the document of its graph: traced in eval mode, for as many sizes as it can be, and tried out.

Invariant: the model, its flags and all random state are left as they were; a graph that does not compute what the
model computes is not kept.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.export import Dim

from safepoint.adapters.torch.graph.module import GraphModel
from safepoint.adapters.torch.graph.recurrent import AsOneStep
from safepoint.adapters.torch.graph.schema import GraphDocument
from safepoint.adapters.torch.graph.write import Call, Member, Writer
from safepoint.errors import SafepointError, UnsupportedError

_log = logging.getLogger("safepoint")


def trace(model: Any, example: Any, members: list[Member]) -> tuple[GraphDocument, dict[str, Any]]:
    """The document of a model's graph, and the constants that it needs: live tensors by name in the file.

    Args:
        model: a module; it is called, in eval mode.
        example: its inputs by position, or a mapping with its inputs by name.
        members: its parameters and buffers, in order.

    Raises:
        UnsupportedError: it cannot be traced; the message has the reason.
    """
    call = _call(model, example)
    reason: Exception | None = None
    with _undisturbed(model) as put_back:
        for attempt, dynamic in _attempts(call):
            try:
                writer = Writer(_export(model, attempt, dynamic=dynamic), model, members, attempt)
                put_back()
                document = _tried(writer, model, members, call, put_back)
            except Exception as error:  # noqa: BLE001 — whatever the model's own code and PyTorch's tracing raise
                reason = error
                _log.debug("tracing failed", exc_info=error)
                put_back()
                continue
            if not dynamic:
                _log.warning("the graph works for the sizes of example_inputs only: %s", _short(reason))
            return document, writer.constants
    raise UnsupportedError(
        f"{type(model).__name__} cannot be traced: {_short(reason)}",
        hint="without a graph, its class is needed to load it: leave example_inputs= out",
    ) from reason


def _call(model: Any, example: Any) -> Call:
    if isinstance(example, torch.Tensor):
        example = (example,)
    if not isinstance(example, Mapping | Sequence) or isinstance(example, str):
        raise UnsupportedError(
            f"example_inputs= is a {type(example).__name__}",
            expected="the inputs of one call: a tuple, or a dictionary of arguments by name",
        )
    args = () if isinstance(example, Mapping) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedError("the model cannot be called with example_inputs=", found=error) from error
    kinds = inspect.signature(model.forward).parameters
    if any(kinds[name].kind is inspect.Parameter.VAR_POSITIONAL for name in bound.arguments):
        raise UnsupportedError("the model takes any number of inputs (*args), which a graph does not")
    return Call(tuple(bound.arguments)[: len(args)], args, kwargs)


def _attempts(call: Call) -> Iterator[tuple[Call, bool]]:
    """What to trace with. PyTorch takes a size of 1 for a constant, so a batch of 1 is traced as a batch of 2."""
    found = [value for value in _tensors(call) if value.dim()]
    if any(1 in value.shape[1:] for value in found):
        yield _map(call, lambda value: _doubled(value, value.dim())), True
    if any(value.shape[0] == 1 for value in found):
        yield _map(call, lambda value: _doubled(value, 1)), True
    yield call, True
    yield call, False


def _doubled(value: Any, axes: int) -> Any:
    """The tensor twice along those of its first axes whose size is 1."""
    return value.repeat([2 if size == 1 and axis < axes else 1 for axis, size in enumerate(value.shape)])


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Call):
        return Call(value.names, _map(value.args, change), _map(dict(value.kwargs), change))
    if isinstance(value, dict):
        return {key: _map(each, change) for key, each in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_map(each, change) for each in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def _tensors(value: Any) -> list[Any]:
    found: list[Any] = []
    _ = _map(value, found.append)
    return found


def _export(model: Any, call: Call, *, dynamic: bool) -> Any:
    def shapes(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shapes(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            parts = [shapes(each) for each in value]
            return parts if isinstance(value, list) else tuple(parts)
        return [None if n == 1 else Dim.AUTO for n in value.shape] if isinstance(value, torch.Tensor) else None

    wanted = {name: shapes(each) for name, each in [*zip(call.names, call.args, strict=True), *call.kwargs.items()]}
    with warnings.catch_warnings(), torch.no_grad(), AsOneStep():
        warnings.simplefilter("ignore")  # they are about how the model is written
        return torch.export.export(
            model, call.args, dict(call.kwargs), dynamic_shapes=wanted if dynamic else None, strict=False
        )


def _tried(
    writer: Writer, model: Any, members: list[Member], call: Call, put_back: Callable[[], None]
) -> GraphDocument:
    """The document, once its graph gave what the model gives; a size of 1 is allowed where that was tried too."""
    live = {**{member.stored: member.tensor.detach() for member in members}, **writer.constants}

    def same(inputs: Call, checked: GraphDocument) -> bool:
        graph = GraphModel(checked, "the traced graph", lambda tensor: live[tensor.stored])
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            found = graph(*inputs.args, **inputs.kwargs)
            put_back()
            torch.manual_seed(0)
            wanted = model(*inputs.args, **inputs.kwargs)
            put_back()
        return _equal(found, wanted)

    allowed = writer.document
    sizes = _sizes(call, allowed)
    alone = [(name, None) for name in sizes]
    # PyTorch may give the batches of two inputs a name each: then they can be 1 together only.
    together = [(name, other) for name in sizes for other in sizes if name != other and sizes[name] == sizes[other]]
    for name, other in [*alone, *together]:
        if allowed.sizes[name].one:
            continue
        trial = _with_one(allowed, name, other)
        with contextlib.suppress(Exception):  # most models do not take every size of 1
            if same(_cut(call, document=trial, sizes={name, other}), trial):
                allowed = trial
    if not same(call, allowed):
        raise UnsupportedError("the traced graph does not compute what the model computes")
    return allowed


def _with_one(document: GraphDocument, name: str, other: str | None) -> GraphDocument:
    """The document where a size may be 1, if another one is given: only where that one is too."""
    sizes = {**document.sizes, name: msgspec.structs.replace(document.sizes[name], one=other or True)}
    if other is not None and not sizes[other].one:
        sizes[other] = msgspec.structs.replace(sizes[other], one=name)
    return msgspec.structs.replace(document, sizes=sizes)


def _sizes(call: Call, document: GraphDocument) -> dict[str, int]:
    """What the named sizes are in a call."""
    shapes = [item.shape for item in document.inputs if item.shape is not None]
    given = zip(shapes, _tensors(call), strict=True)
    axes = [axis for shape, tensor in given for axis in zip(shape, tensor.shape, strict=True)]
    return {name: size for name, size in axes if isinstance(name, str)}


def _cut(call: Call, document: GraphDocument, sizes: set[str | None]) -> Call:
    """The call with some named sizes made 1."""
    shapes = iter([item.shape for item in document.inputs if item.shape is not None])

    def cut(value: Any) -> Any:
        for axis, name in enumerate(next(shapes)):
            value = value.narrow(axis, 0, 1) if isinstance(name, str) and name in sizes else value
        return value

    return _map(call, cut)  # type: ignore[no-any-return]


def _equal(found: Any, wanted: Any) -> bool:
    ours, theirs = (torch.utils._pytree.tree_leaves(value) for value in ([*_plain(found)], [*_plain(wanted)]))
    return len(ours) == len(theirs) and all(_close(a, b) for a, b in zip(ours, theirs, strict=True))


def _plain(value: Any) -> Iterator[Any]:
    """Leaves, in order, of containers of any class."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _plain(each)
    else:
        yield value


def _close(found: Any, wanted: Any) -> bool:
    if not isinstance(wanted, torch.Tensor):
        return bool(type(found) is type(wanted) and found == wanted)
    if not isinstance(found, torch.Tensor) or (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return False
    if not wanted.is_floating_point() and not wanted.is_complex():
        return bool(torch.equal(found, wanted))
    part = 2e-2 if wanted.itemsize < 4 else 1e-4  # another kernel, never another result
    scale = torch.nan_to_num(wanted.abs().double(), nan=0.0, posinf=0.0).max().item() if wanted.numel() else 0.0
    return bool(torch.allclose(found, wanted, rtol=part, atol=part * scale, equal_nan=True))


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[Callable[[], None]]:
    """The model in eval mode; buffers, flags and random state are put back, buffers whenever the given call is made."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    content = [
        (buffer, buffer.detach().clone()) for _, held in buffers for buffer in held.values() if buffer is not None
    ]

    def put_back() -> None:
        for module, held in buffers:
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, kept in content:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)

    told = logging.getLogger("torch")  # of every attempt that fails, with tracebacks
    level = told.level
    with torch.random.fork_rng():
        try:
            told.setLevel(logging.CRITICAL)
            model.eval()
            yield put_back
        finally:
            told.setLevel(level)
            put_back()
            for module, training in flags:
                module.training = training


def _short(error: Exception | None) -> str:
    text = error.message if isinstance(error, SafepointError) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
