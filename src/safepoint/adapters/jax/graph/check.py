"""Every operation of a StableHLO module against what a graph may do: compute.

Invariant: no operation passes that reads or writes anything but its operands, calls code outside of the module, or
belongs to several devices; and none whose cost before the first step cannot be bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from safepoint.errors import CorruptionError, MismatchError, SafepointError, UntrustedError

# StableHLO's operations without infeed, outfeed, send, recv, tokens, tuples, collectives, quantization, those that are
# gone by the time a module is exported, and custom_call, which is looked at by itself.
_NAMES = """
    abs add and atan2 batch_norm_inference bitcast_convert broadcast_in_dim case cbrt ceil cholesky clamp compare
    complex concatenate constant convert convolution cosine count_leading_zeros divide dot_general
    dynamic_broadcast_in_dim dynamic_conv dynamic_gather dynamic_iota dynamic_pad dynamic_reshape dynamic_slice
    dynamic_update_slice exponential exponential_minus_one fft floor gather get_dimension_size if imag iota
    is_finite log log_plus_one logistic map maximum minimum multiply negate not optimization_barrier or pad
    popcnt power real real_dynamic_slice reduce reduce_precision reduce_window remainder reshape return reverse
    rng_bit_generator round_nearest_afz round_nearest_even rsqrt scatter select select_and_scatter shift_left
    shift_right_arithmetic shift_right_logical sign sine slice sort sqrt subtract tan tanh transpose
    triangular_solve while xor
"""
_OPERATIONS = frozenset(f"stablehlo.{name}" for name in _NAMES.split()) | {"func.func", "func.call", "func.return"}
# Attributes that are no operation's own, and say nothing that changes what is computed.
_EXTRA = frozenset(
    {"jax.global_constant", "jax.uses_shape_polymorphism", "mhlo.num_partitions", "mhlo.num_replicas", "error_message"}
)
# XLA's own, which its handling of symbolic sizes takes out again before anything runs. Kernels (LAPACK and the like)
# are none: they believe the shapes that they are told.
_CUSTOM_CALLS = frozenset({"shape_assertion"})
_CUSTOM_ATTRIBUTES = frozenset({"call_target_name", "has_side_effect", "api_version", "error_message"})
_MAX_DEPTH = 40
_MAX_EXPANDED = 10_000_000
_SINGLE = {"num_partitions": 1, "num_replicas": 1}
_TYPES = {
    "bool": "i1", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "ui8", "uint16": "ui16", "uint32": "ui32", "uint64": "ui64", "int4": "i4", "uint4": "ui4",
    "float16": "f16", "float32": "f32", "float64": "f64", "bfloat16": "bf16",
    "complex64": "complex<f32>", "complex128": "complex<f64>",
    "float8_e4m3fn": "f8E4M3FN", "float8_e5m2": "f8E5M2", "float8_e4m3b11fnuz": "f8E4M3B11FNUZ",
    "float8_e4m3fnuz": "f8E4M3FNUZ", "float8_e5m2fnuz": "f8E5M2FNUZ",
}  # fmt: skip
_ELEMENTS = frozenset(_TYPES.values())


def check(module: Any, where: str) -> None:
    """Walk a module.

    Raises:
        UntrustedError: an operation, a custom call or an attribute that no graph may have.
        CorruptionError: nested too deep, or functions that call themselves or each other without end.
    """
    calls: dict[str, Counter[str]] = {}
    sizes: dict[str, int] = {}
    _check_attributes(module.operation, where)
    for function in module.body.operations:
        if function.operation.name != "func.func":
            raise _refused(function.operation.name, where)
        name = function.attributes["sym_name"].value
        calls[name], sizes[name] = Counter(), 0
        for operation in walk(function.operation, where):
            _check_operation(operation, where)
            sizes[name] += 1
            if operation.name == "func.call":
                calls[name][operation.attributes["callee"].value] += 1
    _check_calls(calls, sizes, where)


def type_of(dtype: str, shape: Sequence[int | str]) -> str:
    """How MLIR spells an array; symbolic sizes are `?`.

    Raises:
        KeyError: no graph has such arrays.
    """
    sizes = "".join(f"{size}x" if isinstance(size, int) else "?x" for size in shape)
    return f"tensor<{sizes}{_TYPES[dtype]}>"


def pairs(attributes: Any) -> list[tuple[str, Any]]:
    """Names and attributes of an operation, or of a dictionary."""
    return [(str(attributes[index].name), attributes[index].attr) for index in range(len(attributes))]


def check_signature(module: Any, operands: Sequence[str], results: Sequence[str], *, index: bool, where: str) -> None:
    """Whether `main` takes and gives what the document says, after an index of the platform where there are several.

    Raises:
        CorruptionError: there is no such function.
        MismatchError: it takes or gives something else.
    """
    mains = [f for f in module.body.operations if f.attributes["sym_name"].value == "main"]
    if len(mains) != 1:
        raise CorruptionError(f"the graph in {where} has no function main", file=where)
    kind = mains[0].attributes["function_type"].value
    taken, given = [str(each) for each in kind.inputs], [str(each) for each in kind.results]
    if index and taken[:1] and taken[0] in {"tensor<i32>", "tensor<i64>"}:
        taken = taken[1:]
    for what, found, expected in (("takes", taken, operands), ("gives", given, results)):
        if found != list(expected):
            both = zip_longest(found, expected, fillvalue="nothing")
            number, (is_there, wanted) = next((n, pair) for n, pair in enumerate(both) if pair[0] != pair[1])
            raise MismatchError(
                f"the graph in {where} is not the graph of its weights: it {what} {is_there} at position {number}",
                expected=wanted,
                found=is_there,
                hint="save the model again",
            )


def walk(operation: Any, where: str, depth: int = 0) -> Iterator[Any]:
    """An operation and all inside of it.

    Raises:
        CorruptionError: they are nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise CorruptionError(f"the graph in {where} is nested deeper than {_MAX_DEPTH} regions", file=where)
    yield operation
    for region in operation.regions:
        for block in region:
            for inner in block.operations:
                yield from walk(inner.operation, where, depth + 1)


def _check_operation(operation: Any, where: str) -> None:
    if operation.name == "stablehlo.custom_call":
        _check_custom_call(operation, where)
    elif operation.name not in _OPERATIONS:
        raise _refused(operation.name, where)
    _check_attributes(operation, where)
    for value in operation.results:
        _check_type(value.type, where)
    for region in operation.regions:
        for block in region:
            for argument in block.arguments:
                _check_type(argument.type, where)


def _check_custom_call(operation: Any, where: str) -> None:
    target = operation.attributes["call_target_name"].value
    names = {name for name, _ in pairs(operation.attributes)} if target in _CUSTOM_CALLS else {target}
    if not names <= _CUSTOM_ATTRIBUTES or len(operation.results):
        raise UntrustedError(
            f"the graph in {where} makes the custom call {target[:100]!r}; nothing was run",
            expected=f"operations of StableHLO, and of custom calls only {', '.join(sorted(_CUSTOM_CALLS))}",
            found=", ".join(sorted(names))[:200],
            hint="save the model without it (linear algebra and kernels of one platform are custom calls)",
        )


def _check_attributes(operation: Any, where: str) -> None:
    for name, value in pairs(operation.attributes):
        if "." in name and name not in _EXTRA:
            raise _refused(f"the attribute {name}", where)
        if name.rpartition(".")[2] in _SINGLE and str(value).split(" ")[0] != "1":
            raise _refused(f"{name} = {value}", where)
        if name in {"arg_attrs", "res_attrs"}:
            for each in value:
                for inner, _ in pairs(each):
                    if inner not in _EXTRA:
                        raise _refused(f"the attribute {inner}", where)


def _check_type(kind: Any, where: str) -> None:
    text = str(kind)
    element = text[7:-1].rpartition("x")[2] if "complex" not in text else text[7:-1][text[7:-1].index("complex") :]
    if not text.startswith("tensor<") or element not in _ELEMENTS:
        raise _refused(f"a value of {text[:100]}", where)


def _check_calls(calls: Mapping[str, Counter[str]], sizes: Mapping[str, int], where: str) -> None:
    """XLA puts functions in the place of their calls: as many operations as that makes are counted beforehand."""
    expanded: dict[str, int] = {}

    def expand(name: str, above: tuple[str, ...]) -> int:
        if name not in calls or name in above or len(above) > _MAX_DEPTH * 10:
            raise CorruptionError(f"the graph in {where} calls {name[:100]!r} without end, or not at all", file=where)
        if name not in expanded:
            total = sizes[name] + sum(n * expand(inner, (*above, name)) for inner, n in calls[name].items())
            if total > _MAX_EXPANDED:
                raise CorruptionError(f"the graph in {where} has more than {_MAX_EXPANDED:,} operations", file=where)
            expanded[name] = total
        return expanded[name]

    for name in calls:
        _ = expand(name, ())


def _refused(what: str, where: str) -> SafepointError:
    return UntrustedError(
        f"the graph in {where} has {what[:100]}, which no graph may have; nothing was run",
        expected="operations of StableHLO that compute",
        found=what[:100],
        hint="save the model without it, or load its class where that is known",
    )
