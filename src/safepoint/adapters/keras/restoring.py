"""Putting saved leaves into a built Keras object: the user's own code first, plain variables last.

Invariant: whatever can raise runs before any variable is written, and is taken back if it does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import keras
import numpy as np

from safepoint.adapters.keras.assets import files_of, load_files
from safepoint.adapters.keras.leaves import counter_leaf, leaf_of
from safepoint.adapters.keras.state import State
from safepoint.adapters.keras.values import check_values
from safepoint.errors import SafepointError, UnsupportedError
from safepoint.tree import StateTree, Tensor, Value


def restore(tree: StateTree, state: State) -> None:
    """Put the leaves of `tree` into what `survey` found; leaves that it lacks stay.

    Raises:
        UntrustedError: a value names a path; nothing was opened or changed.
        UnsupportedError: code of the user's refused its part; everything is as it was.
    """
    check_values(state, tree, "the snapshot")
    undo: list[Callable[[], object]] = []
    try:
        _load_stores(tree, state, undo)
        _load_files(tree, state, undo)
        changed = _set_assets(tree, state, undo)
    except Exception as error:
        for back in reversed(undo):
            with suppress(Exception):  # the layer that refused may refuse again; the first error is the one to report
                back()
        if isinstance(error, SafepointError):
            raise
        raise UnsupportedError(
            "a layer refused its saved state; nothing was changed", found=f"{type(error).__name__}: {error}"
        ) from error
    for name, variable in state.variables.items():
        saved = tree.leaves.get(name)
        if isinstance(saved, Tensor):
            live = leaf_of(variable, name)
            target = live if live.spec == saved.spec else counter_leaf(live, saved)
            assert target.write is not None
            target.write(saved.read())
    if _finalize(tree, state) or changed:
        _forget_compiled(state)


def stored_leaf(value: Any) -> Tensor:
    """A leaf of what a layer's own `save_own_variables` stored.

    Raises:
        UnsupportedError: it stored something that is no array.
    """
    array = np.asarray(keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value)
    return Tensor.of(array, live=False)


def _load_stores(tree: StateTree, state: State, undo: list[Callable[[], object]]) -> None:
    for place, (layer, before) in state.stores.items():
        saved = _under(tree, place)
        if saved:
            old = {key: stored_leaf(value).numpy().copy() for key, value in before.items()}
            undo.append(lambda layer=layer, old=old: layer.load_own_variables(old))  # type: ignore[misc]
            arrays = {key: leaf.numpy().copy() for key, leaf in saved.items() if isinstance(leaf, Tensor)}
            layer.load_own_variables(arrays)


def _load_files(tree: StateTree, state: State, undo: list[Callable[[], object]]) -> None:
    for place, layer in state.files.items():
        saved = _under(tree, place)
        if saved:
            old = files_of(layer)
            undo.append(lambda layer=layer, old=old: load_files(layer, old))  # type: ignore[misc]
            load_files(layer, {name: leaf for name, leaf in saved.items() if isinstance(leaf, bytes)})


def _set_assets(tree: StateTree, state: State, undo: list[Callable[[], object]]) -> bool:
    changed = False
    for name, asset in state.assets.items():
        saved = tree.leaves.get(name)
        if name not in tree.leaves or isinstance(saved, Tensor):
            continue
        old: Value = asset.read()
        if saved != old:
            undo.append(lambda asset=asset, old=old: asset.write(old))  # type: ignore[misc]
            asset.write(saved)
            changed = True
    return changed


def _under(tree: StateTree, place: str) -> dict[str, Any]:
    prefix = f"{place}/"
    return {name[len(prefix) :]: leaf for name, leaf in tree.leaves.items() if name.startswith(prefix)}


def _finalize(tree: StateTree, state: State) -> bool:
    """What Keras' own `load_own_variables` do after the variables; whether a constant of compiled functions changed."""
    changed = False
    for path, layer in state.layers.items():
        if not _under(tree, f"{path}/vars" if path else "vars"):
            continue
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            before = _statistics(layer)
            layer.finalize_state()
            changed |= before != _statistics(layer)
        for mode in ("gptq", "awq"):  # quantized weights are saved after calibration only
            if getattr(layer, "quantization_mode", None) == mode:
                setattr(layer, f"is_{mode}_calibrated", True)
    return changed


def _statistics(layer: Any) -> list[bytes]:
    constants = [x for x in (layer.mean, layer.variance) if x is not None]
    return [np.asarray(keras.ops.convert_to_numpy(x)).tobytes() for x in constants]


def _forget_compiled(state: State) -> None:
    """Compiled functions hold vocabularies and means as constants: make again those that exist."""
    for model in state.layers.values():
        for kind in ("train", "test", "predict"):
            if isinstance(model, keras.Model) and getattr(model, f"{kind}_function", None) is not None:
                getattr(model, f"make_{kind}_function")(force=True)
