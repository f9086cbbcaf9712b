"""Whole JAX models: what is saved of one, and one made again from it, ready to run and where possible to train on.

Invariant: nothing is built before every name was allowed and every operation checked, and nothing is returned before
every tensor was verified.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from safepoint.adapters.jax import to_tree
from safepoint.adapters.jax.graph.describe import describe as describe_graph
from safepoint.adapters.jax.graph.module import load as load_graph
from safepoint.adapters.jax.whole_model import classes
from safepoint.adapters.jax.whole_model.names import Names
from safepoint.adapters.jax.whole_model.styles import Style, style_of
from safepoint.adapters.protocol import LoadRequest, SaveRequest, Scope
from safepoint.adapters.structures import check_kind
from safepoint.errors import UnsupportedError, UntrustedError
from safepoint.tree import StateTree, Tensor

_log = logging.getLogger("safepoint")
KIND = "jax"
_HIDDEN = "__safepoint__/"
VERSION = 1


def take_apart(model: Any, request: SaveRequest) -> tuple[dict[str, Any], StateTree]:
    """Structure and state of a model: its class, and with example inputs its graph; one of them is enough.

    Raises:
        UnsupportedError: it cannot be kept; the message says why, and the ways out.
    """
    if request.optimizer is not None:
        raise UnsupportedError(
            "optimizer= is for PyTorch: in JAX its state is a tree of your own",
            hint="safepoint.Checkpoint(params=params, opt_state=opt_state) keeps both",
        )
    style = style_of(model, request.params)
    tree = to_tree(style.state, Scope())
    form, no_class = _class(model, style, tree, request)
    graph, texts, no_graph = _graph(style, tree, request)
    if no_class is not None and request.example_inputs is None:
        raise no_class
    if no_class is not None and no_graph is not None:
        raise UnsupportedError(
            f"{no_class.message}; and by its graph: {no_graph.message}", found=no_graph.found, hint=no_class.hint
        ) from no_graph
    if no_graph is not None:
        _log.warning("saved with its class and without a graph, so loading it needs the class: %s", no_graph.message)
    if no_class is not None:
        say = _log.info if style.name == "function" else _log.warning  # most functions have no name, and need none
        say("saved with its graph and without its class, for inference only: %s", no_class.message)
    structure = {
        "kind": KIND,
        "version": VERSION,
        "style": style.name,
        "jax_version": jax.__version__,
        "class": form,
        "graph": graph,
    }
    return structure, StateTree({**tree.leaves, **texts}, tree.skeleton)


def put_together(
    structure: Mapping[str, Any], saved: StateTree, load: Callable[[Iterable[str]], StateTree], request: LoadRequest
) -> Any:
    """The model that `take_apart` saw. `load` reads tensors of `saved` into memory that the model may keep.

    Raises:
        UntrustedError: the structure names what nobody allowed, or the graph does; nothing was imported or run.
        MismatchError: the graph, or the class, is not that of the weights.
        UnsupportedError: a newer version's structure, or a request that cannot be met.
    """
    check_kind(structure, kind=KIND, version=VERSION, word="JAX model", where=request.where)
    names = Names(request.custom_objects, request.trust, request.where)
    device = _device(request.device)
    if _by_graph(structure, names, request):
        _log.info("%s: built from its exported graph, for inference", request.where)
        return load_graph(structure["graph"], saved, load, request.where, device, request.dtype)
    style = str(structure.get("style"))
    form = classes.check(structure["class"], style, names)
    convert = classes.converter(device, request.dtype)
    loaded = load([name for name in saved.leaves if not name.startswith(_HIDDEN)])
    own = {name: leaf for name, leaf in loaded.leaves.items() if not name.startswith(_HIDDEN)}
    model = classes.build(form, style, names, StateTree(own, loaded.skeleton), convert)
    _log.info("%s: built from its class", request.where)
    return model


def _by_graph(structure: Mapping[str, Any], names: Names, request: LoadRequest) -> bool:
    """Whether to build the graph: where it was asked for, or the class is not kept or not known here."""
    form, graph = structure.get("class"), structure.get("graph")
    if request.form != "auto":
        if structure.get(request.form) is None:
            hint = "save it with example_inputs=" if request.form == "graph" else 'leave form= out, or form="graph"'
            raise UnsupportedError(f"{request.where} was saved without its {request.form}", hint=hint)
        return request.form == "graph"
    if graph is None or form is None:
        return graph is not None
    try:
        _ = classes.check(form, str(structure.get("style")), names)
    except (UntrustedError, UnsupportedError) as error:
        _log.info("%s", error.message)
        return True
    return False


def _class(
    model: Any, style: Style, tree: StateTree, request: SaveRequest
) -> tuple[dict[str, Any] | None, UnsupportedError | None]:
    try:
        return classes.describe(model, style, tree, request.init), None
    except UnsupportedError as error:
        return None, error


def _graph(
    style: Style, tree: StateTree, request: SaveRequest
) -> tuple[dict[str, Any] | None, dict[str, Tensor], UnsupportedError | None]:
    if request.example_inputs is None:
        return None, {}, None
    try:
        graph, texts = describe_graph(style.subject, request.example_inputs)
        _check_widths(graph, tree)
    except UnsupportedError as error:
        return None, {}, error
    return graph, texts, None


def _check_widths(graph: Mapping[str, Any], tree: StateTree) -> None:
    """NumPy's 64-bit arrays, which JAX narrows as it traces, where that is how it is configured."""
    for tensor in graph["tensors"]:
        leaf = tree.leaves[tensor["name"]]
        if isinstance(leaf, Tensor) and leaf.spec.dtype != tensor["dtype"]:
            raise UnsupportedError(
                f"{tensor['name']} is {leaf.spec.dtype}, and JAX computes with {tensor['dtype']} in its place",
                hint="make it a JAX array first: jax.numpy.asarray(array)",
            )


def _device(device: Any) -> Any:
    """A device of JAX, by itself or by name: "cpu", "gpu:1".

    Raises:
        UnsupportedError: there is none of that name.
    """
    if not isinstance(device, str):
        return device
    kind, _, number = device.partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        there = ", ".join(f"{each.platform}:{each.id}" for each in jax.devices())
        raise UnsupportedError(f"there is no device {device!r}", expected=there, found=error) from error
