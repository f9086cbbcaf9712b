"""A loaded graph as a module: the names, parameters and buffers of the model that was traced, and its computation.

Invariant: it computes where its tensors are, and in their dtype, wherever they were when it was traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import nn

from safepoint.adapters.torch import tensors
from safepoint.adapters.torch.graph import schema
from safepoint.adapters.torch.graph.inputs import Signature
from safepoint.adapters.torch.graph.program import Program
from safepoint.adapters.torch.graph.schema import GraphDocument, GraphTensor
from safepoint.errors import CorruptionError, MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor, TensorSpec


class Part(nn.Module):  # type: ignore[misc]
    """A place in the hierarchy of names; only the whole graph is called."""


@final
class GraphModel(nn.Module):  # type: ignore[misc]
    """A model that runs by its exported graph, for inference: `state_dict()` has the names of the model it was."""

    def __init__(self, document: GraphDocument, where: str, content: Callable[[GraphTensor], Any]) -> None:
        """`content` gives each tensor that is not tied to another; it is called when all else was checked."""
        super().__init__()
        kinds = {_dtype(tensor.dtype) for tensor in document.tensors}
        self.document = document
        self._program = Program(document, where, frozenset(kind for kind in kinds if kind.is_floating_point))
        try:
            self._signature = Signature(document)
        except (ValueError, RecursionError) as error:
            raise CorruptionError(f"the graph in {where} is none: {error}", file=where) from error
        places = [self._place(tensor, where) for tensor in document.tensors]
        self._dtypes = {_dtype(tensor.dtype): number for number, tensor in reversed([*enumerate(document.tensors)])}
        made: list[Any] = []
        for tensor, (module, name) in zip(document.tensors, places, strict=True):
            made.append(made[tensor.tied] if tensor.tied is not None else _made(tensor, content(tensor)))
            (module._parameters if tensor.kind == "parameter" else module._buffers)[name] = made[-1]
            if tensor.kind in {"hidden", "constant"}:
                module._non_persistent_buffers_set.add(name)
        self._kept = [
            (module._parameters if tensor.kind == "parameter" else module._buffers, name)
            for tensor, (module, name) in zip(document.tensors, places, strict=True)
        ]
        super().train(mode=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model that was traced computes, in eval mode.

        Raises:
            MismatchError: a call that it was not traced for; says which argument, and what is expected.
        """
        live = [content[name] for content, name in self._kept]

        def dtype_of(saved: Any) -> Any:
            return live[self._dtypes[saved]].dtype if saved in self._dtypes and saved.is_floating_point else saved

        inputs = self._signature.bind(args, kwargs, lambda name: dtype_of(_dtype(name)))
        placed = (value for value in (*live, *inputs) if isinstance(value, torch.Tensor))
        device = next((value.device for value in placed), torch.device("cpu"))
        return self._program.run(live, inputs, device, dtype_of)

    def train(self, mode: bool = True) -> GraphModel:  # noqa: FBT001, FBT002 — the signature of nn.Module
        """Only `train(False)`: the graph was traced in eval mode.

        Raises:
            UnsupportedError: always, for `train()`.
        """
        if mode:
            raise UnsupportedError(
                "a graph was traced for inference, and cannot be put into training mode",
                hint='safepoint.load_model(path, form="class"), where its class is known',
            )
        super().train(mode=False)
        return self

    def _place(self, tensor: GraphTensor, where: str) -> tuple[Any, str]:
        """The module that a tensor belongs to, made where there is none, and its name there."""
        if tensor.kind == "constant":
            if tensor.name in self._buffers:
                raise CorruptionError(f"the graph in {where} has two constants {tensor.name[:100]!r}", file=where)
            self._buffers[tensor.name] = None
            return self, tensor.name
        *path, name = tensor.name.split(".")
        module: Any = self
        taken = False
        for part in path:
            taken = taken or part in module._parameters or part in module._buffers
            module = module._modules.setdefault(part, Part())
        taken = taken or name in module._modules or name in module._parameters or name in module._buffers
        if not all((*path, name)) or len(path) > 200 or taken:
            raise CorruptionError(f"the graph in {where} has no place for {tensor.name[:100]!r}", file=where)
        (module._parameters if tensor.kind == "parameter" else module._buffers)[name] = None
        return module, name


def load(document: object, saved: StateTree, read: Callable[[Iterable[str]], StateTree], where: str) -> GraphModel:
    """The model of a document that nobody checked yet. `read` reads tensors of `saved` into memory that it may keep.

    Raises:
        UntrustedError: it calls what no graph may call; nothing was run.
        MismatchError: its tensors are not those of the file, or this torch has other operators.
        CorruptionError: it is no graph, or a block is damaged.
    """
    graph = schema.decode(document, where)
    _check_tensors(graph, saved, where)
    loaded: list[StateTree] = []

    def content(tensor: GraphTensor) -> Any:
        if not loaded:
            loaded.append(read([each.stored for each in graph.tensors if each.tied is None]))
        leaf = loaded[0].leaves[tensor.stored]
        assert isinstance(leaf, Tensor)
        return tensors.adopted(leaf)

    return GraphModel(graph, where, content)


def _check_tensors(graph: GraphDocument, saved: StateTree, where: str) -> None:
    missing: list[str] = []
    differs: dict[str, tuple[object, object]] = {}
    for number, tensor in enumerate(graph.tensors):
        leaf = saved.leaves.get(tensor.stored)
        if _dtype(tensor.dtype) is None or (tensor.trainable and tensor.kind != "parameter"):
            raise CorruptionError(f"the graph in {where} is none: {tensor.name[:100]!r} is no tensor", file=where)
        wanted = TensorSpec(tuple(tensor.shape), tensor.dtype)
        if not isinstance(leaf, Tensor):
            missing.append(tensor.stored)
        elif leaf.spec != wanted:
            differs[tensor.stored] = (wanted, leaf.spec)
        if tensor.tied is not None:
            other = graph.tensors[tensor.tied] if tensor.tied < number else None
            if other is None or (other.kind == "parameter") != (tensor.kind == "parameter"):
                raise CorruptionError(
                    f"the graph in {where} is none: {tensor.name[:100]!r} is tied to nothing", file=where
                )
    if missing or differs:
        lines = [f"{name[:100]}: missing" for name in missing]
        lines += [
            f"{name[:100]}: {wanted} in the graph, {found} in the file" for name, (wanted, found) in differs.items()
        ]
        raise MismatchError(
            f"the graph in {where} is not the graph of its weights: {'; '.join(lines[:10])}",
            missing=missing,
            differs=differs,
            hint="save the model again",
        )


def _dtype(name: str) -> Any:
    return tensors.dtype_called(name)


def _made(tensor: GraphTensor, content: Any) -> Any:
    if tensor.kind != "parameter":
        return content
    if tensor.trainable and not (content.is_floating_point() or content.is_complex()):
        raise CorruptionError(f"the graph says that {tensor.name[:100]!r} is trained, and it is {tensor.dtype}")
    return nn.Parameter(content, requires_grad=tensor.trainable)
