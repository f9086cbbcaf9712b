"""Whole Keras models: what is saved of one, and one made again from it, ready to predict and to go on training.

Invariant: nothing is given to a model before its structure was allowed, it was built, and every leaf was found to fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from safepoint.adapters.keras import from_tree, ignorable, template, to_tree
from safepoint.adapters.keras.state import survey
from safepoint.adapters.keras.tensors import adopt
from safepoint.adapters.keras.values import check_values
from safepoint.adapters.keras.whole_model.archive import Archive, read_archive
from safepoint.adapters.keras.whole_model.structure import build, describe
from safepoint.adapters.protocol import LoadRequest, SaveRequest, Scope
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import StateTree, Tensor, match

__all__ = ["put_together", "put_together_archive", "read_archive", "take_apart"]
_log = logging.getLogger("safepoint")
_WORTH_BYTES = 64 << 10


def take_apart(model: Any, request: SaveRequest) -> tuple[dict[str, Any], StateTree]:
    """Structure and state of a built model; its optimizer's too, if it is compiled.

    Raises:
        UnsupportedError: it is not built, holds something that no file keeps, or the request is for other frameworks.
    """
    if request.optimizer is not None and request.optimizer is not getattr(model, "optimizer", None):
        raise UnsupportedError("a Keras model is saved with its own optimizer", hint="compile the model with it")
    _refuse(example_inputs=request.example_inputs, init=request.init, params=request.params)
    return describe(model), to_tree(model, Scope())


def put_together(
    structure: Mapping[str, Any], saved: StateTree, load: Callable[[Iterable[str]], StateTree], request: LoadRequest
) -> Any:
    """The model that `take_apart` saw. `load` reads tensors of `saved` into memory that the model may keep.

    Raises:
        UntrustedError: the structure names what nobody allowed; nothing was run.
        MismatchError: a class is no longer what it was when the model was saved.
    """
    _refuse(device=request.device, dtype=request.dtype, form="graph" if request.form == "graph" else None)
    where = request.where
    with ThreadPoolExecutor(1, thread_name_prefix="safepoint-load") as pool:
        reading: list[Future[StateTree]] = []  # beside the building, which is Python and leaves the disk alone

        def read() -> None:
            reading.append(pool.submit(load, saved.leaves))

        model = build(structure, custom_objects=request.custom_objects, trust=request.trust, where=where, checked=read)
        ignored = _check_fit(model, saved, where, optional=frozenset())
        check_values(survey(model, Scope()), saved, where)
        tree = reading[0].result()
    _give(model, StateTree({name: leaf for name, leaf in tree.leaves.items() if name not in ignored}, tree.skeleton))
    return model


def put_together_archive(archive: Archive, request: LoadRequest) -> Any:
    """The model of a `.keras` file, by the same way. Keras keeps no seeds there: those are new, as Keras has them.

    Raises:
        UntrustedError: the structure names what nobody allowed; nothing was run.
        MismatchError: weights and configuration do not fit.
    """
    _refuse(device=request.device, dtype=request.dtype, form="graph" if request.form == "graph" else None)
    model = build(archive.structure, custom_objects=request.custom_objects, trust=request.trust, where=archive.path)
    tree = archive.load(model)
    state = survey(model, Scope())
    optional = {name for name, variable in state.variables.items() if id(variable) in state.counters}
    optional |= state.assets.keys()
    if not any(name.startswith("optimizer/") and "/vars/" in name for name in tree.leaves):
        optional |= {name for name in state.variables if name.startswith("optimizer/")}  # saved before its first step
    _check_fit(model, tree, archive.path, optional=optional)
    check_values(state, tree, archive.path)
    _give(model, tree)
    return model


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UnsupportedError(
                f"{name}= is not for Keras models",
                hint="their configuration says what they are, and the backend decides the device",
            )


def _check_fit(model: Any, saved: StateTree, where: str, *, optional: frozenset[str] | set[str]) -> set[str]:
    """Compare every name, shape and dtype; returns the saved names that the model has no place for and needs none."""
    if not model.built and saved.leaves:
        raise UnsupportedError(
            f"{type(model).__name__} in {where} cannot be built from its configuration",
            hint="give the class a build(input_shape) that builds its layers, and save the model again",
        )
    ignored = ignorable(model, saved)
    if ignored:
        _log.warning(
            "%s: %s compiles itself, so it is not compiled and its optimizer's state is left out",
            where,
            type(model).__name__,
        )
    live = template(model, saved, Scope()).leaves
    wanted = {name: leaf for name, leaf in live.items() if name in saved.leaves or name not in optional}
    error = match(wanted, {n: leaf for n, leaf in saved.leaves.items() if n not in ignored}).error(where, cast=False)
    if error is not None:
        raise MismatchError(
            error.message.replace(
                "does not fit the live objects; nothing was changed", "does not fit its own model", 1
            ),
            missing=error.missing,
            unexpected=error.unexpected,
            differs=error.differs,
            hint="its classes, or Keras itself, have changed since it was saved: use the versions that saved it",
        ) from error
    return ignored


def _give(model: Any, tree: StateTree) -> None:
    """Large tensors become the variables' own memory; everything else goes the way of a restore."""
    state = survey(model, Scope())
    rest = dict(tree.leaves)
    given: set[int] = set()
    for name, variable in state.variables.items():
        leaf = rest.get(name)
        layer = state.layers.get(name.rpartition("/vars/")[0])
        if not isinstance(leaf, Tensor) or leaf.spec.num_bytes < _WORTH_BYTES or hasattr(layer, "finalize_state"):
            continue
        if leaf.spec.dtype != keras.backend.standardize_dtype(variable._dtype):
            continue
        if id(variable) not in given:
            adopt(variable, leaf.numpy())
            given.add(id(variable))
        del rest[name]
    from_tree(StateTree(rest, tree.skeleton), model, Scope())
