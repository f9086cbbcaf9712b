"""StableHLO text ↔ modules, and modules ↔ what `jax.export` runs. The only place that knows MLIR's Python bindings.

Invariant: bytecode is only read where this process wrote it; what a file holds is text that `text` let through.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
from jax.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import stablehlo

from safepoint.adapters.jax.graph import check, text
from safepoint.adapters.jax.graph.schema import GraphDocument, GraphProgram
from safepoint.errors import CorruptionError, UnsupportedError
from safepoint.tree import dtype_of

_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_FUNCTIONS = frozenset({"floordiv", "ceildiv", "mod", "max", "min", "non_negative"})
_KEPT = frozenset({"jax.global_constant", "jax.uses_shape_polymorphism", "mhlo.num_partitions", "mhlo.num_replicas"})


def version() -> str:
    """Of StableHLO, as this jaxlib writes it."""
    return str(stablehlo.get_current_version())


def write(exported: Any) -> str:
    """The text of an exported function, without locations (they name source files) and without hints.

    Raises:
        UnsupportedError: it has what no graph may have.
    """
    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(exported.mlir_module())
        stablehlo.register_stablehlo_passes()
        passmanager.PassManager.parse("builtin.module(func.func(stablehlo-legalize-composite-to-call),symbol-dce)").run(
            module.operation
        )
        for operation in check.walk(module.operation, "the model"):
            _strip(operation)
        check.check(module, "the model")
        return str(module.operation.get_asm(print_generic_op_form=True, enable_debug_info=False))


def _strip(operation: Any) -> None:
    """Take away what says nothing about results: names of arguments, hints of sharding."""
    for name, value in check.pairs(operation.attributes):
        if "." in name and name not in _KEPT:
            del operation.attributes[name]
        elif name in {"arg_attrs", "res_attrs"}:
            kept = [{n: inner for n, inner in check.pairs(each) if n in _KEPT} for each in value]
            operation.attributes[name] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in kept])


def read(data: bytes, program: GraphProgram, document: GraphDocument, where: str) -> Any:
    """The `jax.export.Exported` of one program, every operation of which was checked.

    Raises:
        UntrustedError: it does what no graph may do; nothing was run.
        MismatchError: it is not the graph of the tensors that the document lists.
        CorruptionError: it is no StableHLO.
        UnsupportedError: this version of JAX, as it is configured, cannot run it.
    """
    source = text.check(data, where)
    with mlir.make_ir_context(), ir.Location.unknown():
        try:
            module = ir.Module.parse(source)
        except ir.MLIRError as error:
            raise _unread(error, document, where) from error
        check.check(module, where)
        operands, results = _types(program, document, where)
        check.check_signature(module, operands, results, index=len(document.platforms) > 1, where=where)
        try:
            artifact = bytes(stablehlo.serialize_portable_artifact(module, stablehlo.get_current_version()))
        except (ir.MLIRError, ValueError) as error:
            raise _unread(error, document, where) from error
    return _composed(artifact, program, document, where)


def _composed(artifact: bytes, program: GraphProgram, document: GraphDocument, where: str) -> Any:
    """An export of a function with the same signature, made here and now, around the module that was checked.

    So everything but the module is what this version of JAX makes itself, private fields included.
    """
    ins, outs, polymorphic = _specs(program, document, where)

    def stand_in(*_arrays: Any) -> tuple[Any, ...]:
        return tuple(jax.numpy.zeros(spec.shape, spec.dtype) for spec in outs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            template = jax.export.export(jax.jit(stand_in, keep_unused=True), platforms=document.platforms)(*ins)
        except Exception as error:  # whatever JAX raises for sizes that cannot be
            raise CorruptionError(f"the graph in {where} is none", file=where, found=str(error)[:300]) from error
    return dataclasses.replace(
        template,
        fun_name="graph",
        mlir_module_serialized=artifact,
        uses_global_constants=polymorphic,
        calling_convention_version=document.convention,
    )


def _specs(program: GraphProgram, document: GraphDocument, where: str) -> tuple[list[Any], list[Any], bool]:
    scope = jax.export.SymbolicScope()

    def spec(dtype: str, shape: Sequence[int | str]) -> Any:
        sizes = [jax.export.symbolic_shape(size, scope=scope)[0] if isinstance(size, str) else size for size in shape]
        return jax.ShapeDtypeStruct(tuple(sizes), dtype_of(dtype))

    known = _names(program.inputs)
    if not _names(program.outputs) <= known:
        raise CorruptionError(f"the graph in {where} has a result with a size that no input has", file=where)
    try:
        ins = [spec(dtype, shape) for dtype, shape in operands(program, document)]
        outs = [spec(dtype, shape) for dtype, shape in results(program, document)]
    except Exception as error:  # whatever JAX raises for what is no expression
        raise CorruptionError(f"the graph in {where} is none", file=where, found=str(error)[:300]) from error
    return ins, outs, bool(known) or len(document.platforms) > 1


def operands(program: GraphProgram, document: GraphDocument) -> list[tuple[str, Sequence[int | str]]]:
    """Dtype and shape of what `main` takes: tensors, then the inputs that are arrays."""
    arrays = [item.dtype for item in document.inputs if item.dtype is not None]
    return [*((tensor.dtype, tensor.shape) for tensor in document.tensors), *zip(arrays, program.inputs, strict=True)]


def results(program: GraphProgram, document: GraphDocument) -> list[tuple[str, Sequence[int | str]]]:
    """Dtype and shape of what `main` gives."""
    arrays = [item.dtype for item in document.outputs if item.dtype is not None]
    return [*zip(arrays, program.outputs, strict=True)]


def _types(program: GraphProgram, document: GraphDocument, where: str) -> tuple[list[str], list[str]]:
    try:
        return (
            [check.type_of(dtype, shape) for dtype, shape in operands(program, document)],
            [check.type_of(dtype, shape) for dtype, shape in results(program, document)],
        )
    except KeyError as error:
        raise CorruptionError(f"the graph in {where} has arrays of {error}", file=where) from error


def _names(shapes: Sequence[Sequence[int | str]]) -> set[str]:
    sizes = [size for shape in shapes for size in shape if isinstance(size, str)]
    return {name for size in sizes for name in _WORD.findall(size)} - _FUNCTIONS


def _unread(error: Exception, document: GraphDocument, where: str) -> Exception:
    here, there = version(), document.stablehlo
    if here != there:
        return UnsupportedError(
            f"jaxlib cannot read the graph in {where}",
            expected=f"StableHLO {here}, of jax {jax.__version__}",
            found=f"StableHLO {there[:20]}, of jax {document.jax[:20]}",
            hint="use the version of jax that saved it, or load the model's class",
        )
    return CorruptionError(
        f"the graph in {where} is none", file=where, found=str(error).partition("\n")[2][:300] or str(error)[:300]
    )
