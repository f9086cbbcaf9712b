"""A loaded graph: the weights under their names, and a function of them that JAX runs.

Invariant: every program was checked before the first tensor is read; calls run what was checked, and nothing else.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, final

import jax

from safepoint.adapters.jax import leaves
from safepoint.adapters.jax.graph import inputs, mlir, nesting, schema
from safepoint.adapters.jax.graph.schema import GraphDocument
from safepoint.codec import decode_value
from safepoint.errors import CorruptionError, MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor, TensorSpec, dtype_name, dtype_of


@final
class GraphModel:
    """A model that runs by its exported graph, for inference: `model(x)`, and its weights as `model.params`.

    Calls may stand inside `jax.jit`; they cannot be differentiated.
    """

    def __init__(
        self, document: GraphDocument, texts: Mapping[str, bytes], where: str, params: Mapping[str, Any]
    ) -> None:
        """`params`: name → array, key data for typed keys; looked at when all else was checked."""
        self._functions = [
            _inference(_exported(document, number, texts, where)) for number in range(len(document.programs))
        ]
        self._signature, self._result = _arguments(document, where)
        self._outputs = document.outputs
        self._raw = [params[tensor.name] for tensor in document.tensors]
        self._document = document

    @property
    def params(self) -> Mapping[str, Any]:
        """Name in the file → array or typed PRNG key; read-only."""
        tensors = self._document.tensors
        return types.MappingProxyType(
            {tensor.name: _keyed(raw, tensor.key) for tensor, raw in zip(tensors, self._raw, strict=True)}
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model that was saved computes.

        Raises:
            MismatchError: a call that it was not exported for; says which argument, and what is expected.
        """
        found = iter(self.raw(*self._signature.bind(args, kwargs)))
        values = [
            _keyed(next(found), o.key) if o.dtype is not None else decode_value(o.constant) for o in self._outputs
        ]
        return nesting.decode(self._result, lambda leaf: values[leaf["output"]])

    def raw(self, number: int, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """What one of its programs gives for inputs that fit: arrays in order, key data for typed keys."""
        try:
            return tuple(self._functions[number](*self._raw, *arrays))
        except ValueError as error:  # how JAX says that sizes do not fit an expression over others
            raise MismatchError("a call that the graph was not exported for", found=str(error)[:300]) from error

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{item.name}: {item.dtype}[{', '.join(map(str, shape))}]"
            for item, shape in zip(
                [i for i in self._document.inputs if i.dtype], self._document.programs[-1].inputs, strict=True
            )
        )
        return f"GraphModel({arguments}; {len(self._raw)} tensors)"


def load(
    document: object, saved: StateTree, read: Callable[[Iterable[str]], StateTree], where: str, device: Any, dtype: Any
) -> GraphModel:
    """The model of a document that nobody checked yet. `read` reads tensors of `saved` into memory that it may keep.

    Raises:
        UntrustedError: it does what no graph may do; nothing was run.
        MismatchError: its tensors are not those of the file.
        UnsupportedError: it is for another platform, or has 64-bit values that JAX is told not to have.
        CorruptionError: it is no graph, or a block is damaged.
    """
    graph = schema.decode(document, where)
    _check_tensors(graph, saved, where)
    _check_platform(graph, device, where)
    _check_dtype(graph, dtype, where)
    texts = read([program.text for program in graph.programs])
    content = {name: bytes(leaf.read()) for name, leaf in texts.leaves.items() if isinstance(leaf, Tensor)}
    params = _Later(lambda: _params(graph, read, device))
    return GraphModel(graph, content, where, params)


@final
class _Later(Mapping[str, Any]):
    """Tensors that are read when the first is asked for: after everything else was checked."""

    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self._make = make
        self._made: Mapping[str, Any] | None = None

    def _all(self) -> Mapping[str, Any]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def __iter__(self) -> Any:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _params(graph: GraphDocument, read: Callable[[Iterable[str]], StateTree], device: Any) -> Mapping[str, Any]:
    loaded = read([tensor.name for tensor in graph.tensors])
    found = {}
    for tensor in graph.tensors:
        leaf = loaded.leaves[tensor.name]
        assert isinstance(leaf, Tensor)
        array = leaves.build(leaf)
        found[tensor.name] = array if device is None else jax.device_put(array, device)
    return found


def _check_tensors(graph: GraphDocument, saved: StateTree, where: str) -> None:
    missing: list[str] = []
    differs: dict[str, tuple[object, object]] = {}
    for tensor in graph.tensors:
        leaf = saved.leaves.get(tensor.name)
        wanted = TensorSpec(tuple(tensor.shape), tensor.dtype)
        if not isinstance(leaf, Tensor):
            missing.append(tensor.name)
        elif leaf.spec != wanted:
            differs[tensor.name] = (wanted, leaf.spec)
        else:
            leaves.check_width(leaf.spec)
    missing += [program.text for program in graph.programs if not _is_text(saved.leaves.get(program.text))]
    if missing or differs:
        lines = [f"{name[:100]}: missing" for name in missing]
        lines += [f"{name[:100]}: {a} in the graph, {b} in the file" for name, (a, b) in differs.items()]
        raise MismatchError(
            f"the graph in {where} is not the graph of its weights: {'; '.join(lines[:10])}",
            missing=missing,
            differs=differs,
            hint="save the model again",
        )


def _is_text(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.spec.dtype == "uint8" and len(leaf.spec.shape) == 1


def _check_platform(graph: GraphDocument, device: Any, where: str) -> None:
    platform = jax.export.default_export_platform() if device is None else str(device.platform)
    names = {"gpu": ("cuda", "rocm")}.get(platform, (platform,))
    if not {*names} & {*graph.platforms}:
        raise UnsupportedError(
            f"the graph in {where} was not exported for {platform}",
            expected=" or ".join(graph.platforms),
            found=platform,
            hint="load_model(path, device=...) with one of these, or save it again there",
        )


def _check_dtype(graph: GraphDocument, dtype: Any, where: str) -> None:
    kinds = {t.dtype for t in graph.tensors if jax.numpy.issubdtype(dtype_of(t.dtype), jax.numpy.floating)}
    if dtype is not None and kinds != {dtype_name(jax.numpy.dtype(dtype))}:
        raise UnsupportedError(
            f"the graph in {where} computes in {' and '.join(sorted(kinds)) or 'whole numbers'}",
            found=f"dtype={dtype!r}",
            hint='save the model again in that dtype, or form="class" where its class is known',
        )


def _exported(document: GraphDocument, number: int, texts: Mapping[str, bytes], where: str) -> Any:
    program = document.programs[number]
    return mlir.read(texts[program.text], program, document, where)


def _arguments(document: GraphDocument, where: str) -> tuple[inputs.Signature, Any]:
    try:
        _check_outputs(document)
        return inputs.Signature(document), document.result
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"the graph in {where} is none: {error}", file=where) from error


def _check_outputs(document: GraphDocument) -> None:
    numbers = [leaf.number for leaf in nesting.leaves(inputs.tree(document.result, "output"))]
    if sorted(numbers) != list(range(len(document.outputs))):
        raise ValueError("outputs and result do not fit")
    if any(output.dtype is not None and output.constant is not None for output in document.outputs):
        raise ValueError("an output is both an array and a constant")


def _keyed(raw: Any, key: str | None) -> Any:
    return raw if key is None else jax.random.wrap_key_data(raw, impl=key)


def _inference(exported: Any) -> Callable[..., Any]:
    """The function of an export, compiled once a shape, that says so where somebody takes its gradient.

    JAX would look for the gradient in what the module was composed around, which has another one.
    """

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def function(*arrays: Any) -> Any:
        return exported.call(*arrays)

    def refuse(*_arrays: Any) -> NoReturn:
        raise UnsupportedError(
            "a graph is for inference, and has no gradient",
            hint='safepoint.load_model(path, form="class"), where its class is known',
        )

    function.defvjp(refuse, refuse)
    return jax.jit(function)  # type: ignore[no-any-return]
