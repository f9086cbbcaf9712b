"""Whole PyTorch models: what is saved of one, and one made again from it, ready to run and to go on training.

Invariant: nothing is built before every name was allowed, and nothing is returned before every tensor was verified.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from safepoint.adapters.protocol import LoadRequest, SaveRequest
from safepoint.adapters.structures import check_kind
from safepoint.adapters.torch import modules
from safepoint.adapters.torch.graph.describe import describe as describe_graph
from safepoint.adapters.torch.graph.module import GraphModel
from safepoint.adapters.torch.graph.module import load as load_graph
from safepoint.adapters.torch.whole_model import flags, hugging_face, weights
from safepoint.adapters.torch.whole_model.build import build, check
from safepoint.adapters.torch.whole_model.compare import inner, walk
from safepoint.adapters.torch.whole_model.describe import Describer
from safepoint.adapters.torch.whole_model.names import Names
from safepoint.errors import CorruptionError, UnsupportedError, UntrustedError
from safepoint.tree import StateTree, Tensor

_log = logging.getLogger("safepoint")
KIND = "torch"
VERSION = 1
MAPS = True


def take_apart(model: Any, request: SaveRequest) -> tuple[dict[str, Any], StateTree]:
    """Structure and state of a module: its class, and with example inputs its graph; one of them is enough.

    Raises:
        UnsupportedError: it cannot be kept; the message says why, and the ways out.
    """
    model = inner(model)
    if isinstance(model, GraphModel):
        raise UnsupportedError(
            "the model was loaded from its graph, and its class is not here",
            hint="copy the file that it was loaded from; safepoint.Checkpoint(model=model) keeps weights that changed",
        )
    tree = modules.to_tree(model)
    more: dict[str, Any] = weights.hidden(model, tree)
    form, tensors, no_class = _class(model, request)
    graph, constants, no_graph = _graph(model, request, tree, more)
    if no_class is not None and request.example_inputs is None:
        raise no_class
    if no_class is not None and no_graph is not None:
        raise UnsupportedError(
            f"{no_class.message}; and by its graph: {no_graph.message}", found=no_graph.found, hint=no_class.hint
        ) from no_graph
    if no_graph is not None:
        _log.warning("saved with its class and without a graph, so loading it needs the class: %s", no_graph.message)
    if no_class is not None:
        _log.warning("saved with its graph and without its class, for inference only: %s", no_class.message)
    structure = {
        "kind": KIND,
        "version": VERSION,
        "torch_version": str(torch.__version__),
        "class": form,
        "graph": graph,
    }
    return structure, StateTree({**tree.leaves, **more, **tensors, **constants}, tree.skeleton)


def folder_config(model: Any) -> dict[str, Any] | None:
    """`config.json` beside a model of `transformers`, as its `from_pretrained` expects it."""
    return hugging_face.folder_config(inner(model))


def put_together(
    structure: Mapping[str, Any], saved: StateTree, load: Callable[[Iterable[str]], StateTree], request: LoadRequest
) -> Any:
    """The module that `take_apart` saw. `load` reads tensors of `saved` into memory that the model may keep.

    Raises:
        UntrustedError: the structure names what nobody allowed; nothing was imported or run.
        MismatchError: a class is no longer what it was when the model was saved.
        UnsupportedError: a newer version's structure, or a request that cannot be met.
    """
    check_kind(structure, kind=KIND, version=VERSION, word="PyTorch model", where=request.where)
    names = Names(request.custom_objects, request.trust, request.where)
    if _by_graph(structure, names, request):
        _log.info("%s: built from its exported graph, for inference", request.where)
        model = load_graph(structure["graph"], saved, load, request.where)
        return weights.convert(model, request.device, request.dtype)
    form = structure["class"]
    tensors = {name: leaf for name, leaf in saved.leaves.items() if isinstance(leaf, Tensor)}
    model = build(form.get("model"), names, tensors, saved.num_bytes)
    flags.tie(model, form, request.where)
    weights.give(model, saved, load, request.where)
    flags.apply(model, form, request.where)
    _log.info("%s: built from its class, %s", request.where, type(model).__name__)
    return weights.convert(model, request.device, request.dtype)


def _class(
    model: Any, request: SaveRequest
) -> tuple[dict[str, Any] | None, dict[str, Tensor], UnsupportedError | None]:
    describer = Describer(request.init)
    try:
        form = {"model": describer.describe(model), **flags.describe(model)}
    except UnsupportedError as error:
        return None, {}, error
    return form, describer.tensors, None


def _graph(
    model: Any, request: SaveRequest, tree: StateTree, hidden: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Tensor], UnsupportedError | None]:
    if request.example_inputs is None:
        return None, {}, None
    stored = {name: name for name in tree.tensors} | {n.removeprefix(weights.HIDDEN): n for n in hidden}
    try:
        return *describe_graph(model, request.example_inputs, stored, walk), None
    except UnsupportedError as error:
        return None, {}, error


def _by_graph(structure: Mapping[str, Any], names: Names, request: LoadRequest) -> bool:
    """Whether to build the graph: where it was asked for, or the class is not kept or not known here."""
    form, graph, where = structure.get("class"), structure.get("graph"), request.where
    if request.form != "auto":
        if structure.get(request.form) is None:
            hint = "save it with example_inputs=" if request.form == "graph" else 'leave form= out, or form="graph"'
            raise UnsupportedError(f"{where} was saved without its {request.form}", hint=hint)
        by_graph = request.form == "graph"
    elif form is None or graph is None:
        by_graph = graph is not None
    else:
        by_graph = False
        try:
            check(form.get("model") if isinstance(form, dict) else None, names)
        except UntrustedError as error:
            _log.info("%s", error.message)
            by_graph = True
    if not by_graph and not isinstance(form, dict):
        raise CorruptionError(f"{where} describes no class", file=where)
    return by_graph
