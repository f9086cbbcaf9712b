"""A live model → its graph: exported for as many batch sizes and platforms as it can be, and tried out.

Invariant: the model is left as it was; a graph that does not compute what the model computes is not kept.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from safepoint.adapters.jax import leaves
from safepoint.adapters.jax.graph import mlir, nesting
from safepoint.adapters.jax.graph.inputs import is_array
from safepoint.adapters.jax.graph.module import GraphModel
from safepoint.adapters.jax.graph.schema import (
    CONVENTION,
    PLATFORMS,
    VERSION,
    GraphArgument,
    GraphDocument,
    GraphInput,
    GraphOutput,
    GraphProgram,
    GraphTensor,
    decode,
    encode,
)
from safepoint.codec import encode_value
from safepoint.errors import SafepointError, UnsupportedError
from safepoint.tree import dtype_name, is_value

_Way = Literal["once", "added", "leading"]
"""As the model is called; `jax.vmap` of it, over an axis that the example lacks; or over the example's first axis."""
_log = logging.getLogger("safepoint")
TEXT = "__safepoint__/graph"


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A model as JAX sees it.

    Attributes:
        arrays: name in the file → array or typed key of the model, in order.
        call: (name → what stands for it, args, kwargs) → the result; a function of these alone.
        signature: whose parameters are the arguments of a call; None where that is not known.
        mapped: whether the model takes one sample, so that `jax.vmap` of it is exported too.
    """

    arrays: Mapping[str, Any]
    call: Callable[[Mapping[str, Any], tuple[Any, ...], dict[str, Any]], Any]
    signature: inspect.Signature | None
    mapped: bool = False


class _Call(NamedTuple):
    """Arguments as trees, and their leaves in order: arrays (or specs), and constants."""

    arguments: list[GraphArgument]
    leaves: list[tuple[str, Any]]


class _Lowered(NamedTuple):
    function: Callable[..., tuple[Any, ...]]
    text: str
    program: GraphProgram
    outputs: list[GraphOutput]
    result: Any
    platforms: list[str]


def trace(subject: Subject, example: Any) -> tuple[GraphDocument, dict[str, bytes]]:
    """The document of a model's graph, and the texts of its programs by their names in the file.

    Raises:
        UnsupportedError: it cannot be exported; the message has the reason.
    """
    call = _call(subject, example)
    ways: list[_Way] = ["once"]
    try:
        lowered = [_lower(subject, call, "once", f"{TEXT}/0")]
    except UnsupportedError as error:
        if not subject.mapped:
            raise
        try:
            lowered, ways = [_lower(subject, call, "leading", f"{TEXT}/0")], ["leading"]
        except UnsupportedError:
            raise error from None
    if subject.mapped and ways == ["once"]:
        try:
            many = _lower(subject, call, "added", f"{TEXT}/1")
        except UnsupportedError as error:
            _log.info("no graph for batches of samples: %s", error.message)
        else:
            if (many.outputs, many.result, many.platforms) == lowered[0][3:]:
                lowered.append(many)
                ways.append("added")
    document = GraphDocument(
        version=VERSION,
        jax=jax.__version__,
        stablehlo=mlir.version(),
        convention=CONVENTION,
        platforms=lowered[0].platforms,
        tensors=[_tensor(name, array) for name, array in subject.arrays.items()],
        inputs=[_input(path, value) for path, value in call.leaves],
        arguments=call.arguments,
        outputs=lowered[0].outputs,
        result=lowered[0].result,
        programs=[each.program for each in lowered],
    )
    texts = {each.program.text: each.text.encode("ascii") for each in lowered}
    _try(subject, call, document, lowered, ways)
    return document, texts


def _call(subject: Subject, example: Any) -> _Call:
    if is_array(example):
        example = (example,)
    if not isinstance(example, Mapping | Sequence) or isinstance(example, str | bytes):
        raise UnsupportedError(
            f"example_inputs= is a {type(example).__name__}",
            expected="the inputs of one call: a tuple, or a dictionary of arguments by name",
        )
    args = () if isinstance(example, Mapping) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    names = _argument_names(subject, args, kwargs)
    found: list[tuple[str, Any]] = []

    def leaf(path: str, value: Any) -> Any:
        if not is_array(value) and not is_value(value):
            raise UnsupportedError(
                f"{path} in example_inputs= is a {type(value).__module__}.{type(value).__qualname__}",
                expected="arrays, PRNG keys, plain values, and lists, tuples and dictionaries of them",
            )
        found.append((path, value))
        return {"input": len(found) - 1}

    arguments = [
        GraphArgument(name, nesting.encode(value, leaf, name or f"argument {n}"), keyword_only=n >= len(args))
        for n, (name, value) in enumerate(zip(names, [*args, *kwargs.values()], strict=True))
    ]
    return _Call(arguments, found)


def _argument_names(subject: Subject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str | None]:
    if subject.signature is None:
        return [*([None] * len(args)), *kwargs]
    try:
        _ = subject.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedError("the model cannot be called with example_inputs=", found=error) from error
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [(p.name if p.kind is fixed[1] else None) for p in subject.signature.parameters.values() if p.kind in fixed]
    return [*(known[n] if n < len(known) else None for n in range(len(args))), *kwargs]


def _lower(subject: Subject, call: _Call, way: _Way, text: str) -> _Lowered:
    reason: Exception | None = None
    for platforms in (list(PLATFORMS), [jax.export.default_export_platform()]):
        for attempt, shapes in enumerate(_shapes(call, way)):
            try:
                found = _export(subject, call, shapes, platforms, mapped=way != "once", text=text)
            except Exception as error:  # noqa: BLE001 — whatever the model's own code and JAX's tracing raise
                reason = reason or error
                _log.debug("exporting failed", exc_info=error)
                continue
            if (
                attempt
                and not subject.mapped
                and not any(isinstance(size, str) for shape in found.program.inputs for size in shape)
            ):
                _log.warning("the graph works for the sizes of example_inputs only: %s", _short(reason))
            return found
    raise UnsupportedError(
        f"it cannot be exported: {_short(reason)}",
        hint="without a graph, its class is needed to load it: leave example_inputs= out",
    ) from reason


def _shapes(call: _Call, way: _Way) -> Iterator[list[tuple[Any, ...]]]:
    """Shapes to export for, best first: leading sizes that are equal in the example are one symbolic size."""
    arrays = [value for _, value in call.leaves if is_array(value)]
    if any(jax.export.is_symbolic_dim(size) for array in arrays for size in array.shape):
        yield [tuple(array.shape) for array in arrays]  # as the caller says
        return
    shapes = [tuple(array.shape) for array in arrays]
    if way == "added":
        (batch,) = jax.export.symbolic_shape("b")
        yield [(batch, *shape) for shape in shapes]
        return
    sizes = list(dict.fromkeys(shape[0] for shape in shapes if shape))
    for count in dict.fromkeys((len(sizes), min(1, len(sizes)), 0)):
        symbols = jax.export.symbolic_shape(
            ", ".join("bcdefghijklmnop"[n] if n < 15 else f"b{n}" for n in range(count))
        )
        named = dict(zip(sizes, symbols, strict=False))
        yield [(named.get(shape[0], shape[0]), *shape[1:]) if shape else shape for shape in shapes]


def _export(
    subject: Subject, call: _Call, shapes: list[tuple[Any, ...]], platforms: list[str], *, mapped: bool, text: str
) -> _Lowered:
    arrays = [value for _, value in call.leaves if is_array(value)]
    names = list(subject.arrays)
    outputs: list[GraphOutput] = []
    result: list[Any] = []

    def flat(*values: Any) -> tuple[Any, ...]:
        given = {name: _wrapped(v, subject.arrays[name]) for name, v in zip(names, values, strict=False)}
        inner = [_wrapped(v, like) for v, like in zip(values[len(names) :], arrays, strict=True)]
        if mapped:
            found = jax.vmap(lambda *each: _run(subject, call, given, each))(*inner)
        else:
            found = _run(subject, call, given, inner)
        outputs.clear()
        taken: list[Any] = []

        def leaf(path: str, value: Any) -> Any:
            outputs.append(_output(path, value))
            if outputs[-1].dtype is not None:
                taken.append(_unwrapped(value))
            return {"output": len(outputs) - 1}

        result[:] = [nesting.encode(found, leaf, "the result")]
        return tuple(taken)

    specs = [_spec(array, array.shape) for array in subject.arrays.values()]
    specs += [_spec(array, shape) for array, shape in zip(arrays, shapes, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about how the model is written
        exported = jax.export.export(jax.jit(flat, keep_unused=True), platforms=platforms)(*specs)
    if exported.ordered_effects or exported.unordered_effects:
        raise UnsupportedError("it has effects beside its result", found=exported.ordered_effects)
    if exported.calling_convention_version != CONVENTION or exported.nr_devices != 1:
        raise UnsupportedError("it is for several devices, or of another calling convention than safepoint's")
    program = GraphProgram(
        text,
        [_sizes(aval.shape) for aval in exported.in_avals[len(names) :]],
        [_sizes(aval.shape) for aval in exported.out_avals],
    )
    return _Lowered(flat, mlir.write(exported), program, [*outputs], result[0], list(exported.platforms))


def _run(subject: Subject, call: _Call, given: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
    """The model's result, with arrays in the places of the example's."""
    rest = iter(arrays)
    values = [next(rest) if is_array(value) else value for _, value in call.leaves]
    trees = [nesting.decode(a.tree, lambda leaf: values[leaf["input"]]) for a in call.arguments]
    args = tuple(t for a, t in zip(call.arguments, trees, strict=True) if not a.keyword_only)
    kwargs = {str(a.name): t for a, t in zip(call.arguments, trees, strict=True) if a.keyword_only}
    return subject.call(given, args, kwargs)


def _try(
    subject: Subject, call: _Call, document: GraphDocument, lowered: Sequence[_Lowered], ways: Sequence[_Way]
) -> None:
    """Check what was written as a load would, run it, and compare with the model.

    Raises:
        UnsupportedError: it does what no graph may do, or computes something else.
    """
    texts = {each.program.text: each.text.encode("ascii") for each in lowered}
    arrays = {name: _unwrapped(array) for name, array in subject.arrays.items()}
    example = [_unwrapped(_concrete(value)) for _, value in call.leaves if is_array(value)]
    try:
        document = decode(encode(document), "the model")
        model = GraphModel(document, texts, "the model", arrays)
        for number, (way, each) in enumerate(zip(ways, lowered, strict=True)):
            inputs = [value[None] for value in example] if way == "added" else example
            wanted = jax.jit(each.function)(*arrays.values(), *inputs)
            if not all(_close(a, b) for a, b in zip(model.raw(number, inputs), wanted, strict=True)):
                raise UnsupportedError("its graph does not compute what the model computes")
    except SafepointError as error:
        raise UnsupportedError(
            f"it cannot be kept as a graph: {error.message}", found=error.found, hint=error.hint
        ) from error


def _wrapped(value: Any, like: Any) -> Any:
    if not leaves.is_key(like):
        return value
    return jax.random.wrap_key_data(value, impl=leaves.kind_of_array(like).removeprefix("jax.key."))


def _unwrapped(value: Any) -> Any:
    return jax.random.key_data(value) if isinstance(value, jax.Array) and leaves.is_key(value) else value


def _spec(array: Any, shape: Sequence[Any]) -> Any:
    if leaves.is_key(array):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), array.dtype))
        return jax.ShapeDtypeStruct((*shape, *data.shape), data.dtype)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(tuple(shape), dtype, weak_type=bool(getattr(array, "weak_type", False)))


def _tensor(name: str, array: Any) -> GraphTensor:
    spec, key = _spec(array, array.shape), _key(array)
    return GraphTensor(name, dtype_name(np.dtype(spec.dtype)), list(spec.shape), key)


def _input(path: str, value: Any) -> GraphInput:
    if not is_array(value):
        return GraphInput(path, constant=encode_value(value))
    return GraphInput(path, dtype_name(np.dtype(_spec(value, value.shape).dtype)), _key(value))


def _output(path: str, value: Any) -> GraphOutput:
    if is_value(value):
        return GraphOutput(constant=encode_value(value))
    if not is_array(value):
        raise UnsupportedError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which no file may name",
            expected="arrays, plain values, and lists, tuples and dictionaries of them",
        )
    return GraphOutput(dtype_name(np.dtype(_spec(value, value.shape).dtype)), _key(value))


def _key(array: Any) -> str | None:
    return leaves.kind_of_array(array).removeprefix("jax.key.") if leaves.is_key(array) else None


def _sizes(shape: Sequence[Any]) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in shape]


def _concrete(value: Any) -> Any:
    """What stands for an input that the caller only described: zeros, 2 along sizes that have names."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return value
    return jnp.zeros([size if isinstance(size, int) else 2 for size in value.shape], value.dtype)


def _close(found: Any, wanted: Any) -> bool:
    a, b = np.asarray(found), np.asarray(wanted)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        return bool((a == b).all())
    part = 2e-2 if b.dtype.itemsize < 4 else 1e-4  # another order of sums, never another result
    wide = np.complex128 if jnp.issubdtype(b.dtype, jnp.complexfloating) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    scale = float(np.abs(np.nan_to_num(b, nan=0.0, posinf=0.0, neginf=0.0)).max()) if b.size else 0.0
    return bool(np.allclose(a, b, rtol=part, atol=part * scale, equal_nan=True))


def _short(error: Exception | None) -> str:
    text = error.message if isinstance(error, SafepointError) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
