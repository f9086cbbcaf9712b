"""Keras objects ↔ state trees, on every backend: models, layers, optimizers, metrics, seed generators.

Names are structural and Keras' own (`layers/dense/vars/0`); a compiled model includes its optimizer
(`optimizer/layers/dense/vars/0/momentum`). Metrics of a model are no state: each epoch starts them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import keras
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from safepoint.adapters.keras.assets import files_of
from safepoint.adapters.keras.building import (
    algorithm_in,
    build,
    check_built,
    check_kind,
    optimizers_in,
    preview,
    skeleton_of,
)
from safepoint.adapters.keras.leaves import counter_leaf, is_counter, leaf_of, planned_leaf
from safepoint.adapters.keras.optimizers import build_slots, built_like, reset, trained_by, variables_of
from safepoint.adapters.keras.restoring import restore, stored_leaf
from safepoint.adapters.keras.state import State, add_optimizer, is_built, owner_in, survey
from safepoint.adapters.keras.values import check_values
from safepoint.adapters.protocol import RandomState, Scope, TensorKind
from safepoint.errors import UnsupportedError
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, join_name

OPAQUE = False
FORMAT = "keras"

# Variables that `owners` named: an optimizer that is tracked by itself and not built yet is built for some of them.
_owned: WeakValueDictionary[int, Any] = WeakValueDictionary()


def handles(obj: Any) -> bool:
    """Models, layers, optimizers, metrics and seed generators; variables wherever plain trees are."""
    return isinstance(obj, keras.Layer | keras.optimizers.Optimizer | keras.Metric | keras.random.SeedGenerator)


def is_model(obj: Any) -> bool:
    """Whether `save_model` keeps it whole."""
    return isinstance(obj, keras.Model)


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """Variables by name, the trained ones first and in Keras' order; on torch and TensorFlow their tensors too."""
    if not isinstance(obj, keras.Layer) or not is_built(obj):
        return []
    names = survey(obj, Scope(), with_optimizers=False).owners
    variables = {id(v): v for v in [*obj.trainable_variables, *obj.variables] if id(v) in names}
    _owned.update(variables)
    found = [(names[key], variable) for key, variable in variables.items()]
    mutable = keras.backend.backend() in {"tensorflow", "torch"}
    return found + [(name, v._value) for name, v in found if mutable and v._value is not None]


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of `obj`; on JAX, first brought back from a running `fit`.

    Raises:
        UnsupportedError: it is not built yet, or holds something that cannot be kept.
    """
    _sync(obj)
    state = survey(obj, scope)
    if not is_built(obj) and (isinstance(obj, keras.Model) or not (state.variables or state.assets)):
        raise UnsupportedError(
            f"{type(obj).__name__} {obj.name!r} is not built: it has no variables to save",
            hint="call it once on a batch, or model.build(input_shape)",
        )
    leaves: dict[str, Leaf] = {name: leaf_of(variable, name) for name, variable in state.variables.items()}
    return StateTree({**leaves, **_other_leaves(state)}, skeleton_of(obj, state.optimizers))


def to_come(obj: Any) -> int:
    """Bytes of optimizer slots that the first training step will make: two for each trained variable, as Adam's."""
    optimizer = getattr(obj, "optimizer", None) if isinstance(obj, keras.Model) and is_built(obj) else None
    if optimizer is None or optimizer.built:
        return 0
    return sum(2 * 4 * math.prod(variable.shape) for variable in obj.trainable_variables)


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """What `like` accepts: its state, plus the variables and slots that it will have once it is built.

    Raises:
        MismatchError: what was saved under its name was no Keras object.
        UnsupportedError: it is not built, and cannot be built from what was saved.
    """
    check_kind(like, saved)
    _sync(like)
    state, model = survey(like, scope), like
    leaves: dict[str, Leaf] = {name: leaf_of(variable, name) for name, variable in state.variables.items()}
    if not is_built(like) and any(name not in leaves for name in saved.leaves):
        model = preview(like, saved)
        live, state = state, survey(model, scope, with_optimizers=False)
        leaves = {name: leaves.get(name, planned_leaf(variable)) for name, variable in state.variables.items()} | leaves
        for path, optimizer in live.optimizers.items():
            add_optimizer(optimizer, path, state, owner_in(state, scope))
    others = _of_another_algorithm(state, saved)
    for path, optimizer in state.optimizers.items():
        if path not in others:
            _plan_slots(path, optimizer, model, saved, scope, state, leaves)
            continue
        for name in _names(path, state):  # it takes nothing of the other's, whose names may be the same
            leaves.pop(name, None)
    for name, variable in state.variables.items():
        live_leaf, theirs = leaves.get(name), saved.leaves.get(name)
        if isinstance(live_leaf, Tensor) and isinstance(theirs, Tensor) and id(variable) in state.counters:
            leaves[name] = counter_leaf(live_leaf, theirs) if is_counter(live_leaf, theirs) else live_leaf
    leaves.update(_other_leaves(state))
    for place in (*state.stores, *state.files):  # only the user's own code knows what these accept
        theirs_here = {name: leaf for name, leaf in saved.leaves.items() if name.startswith(f"{place}/")}
        if theirs_here:
            leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith(f"{place}/")} | theirs_here
    return StateTree(leaves, skeleton_of(model, state.optimizers))


def advice(like: Any, saved: StateTree, scope: Scope, differs: Iterable[tuple[TensorSpec, TensorSpec]]) -> str | None:
    """What to do about the state of another optimizer."""
    del differs
    others = _of_another_algorithm(survey(like, scope), saved)
    if not others:
        return None
    was, now = next(iter(others.values()))
    return (
        f"the state of {was} was saved and the live optimizer is {now}: restore the layers alone with select=, "
        "and let the new optimizer start afresh"
    )


def ignorable(like: Any, saved: StateTree, scope: Scope | None = None) -> set[str]:
    """Names of saved optimizers that `like` has none for: a model without optimizer ignores a saved one."""
    if not isinstance(like, keras.Layer):
        return set()
    mine = survey(like, scope or Scope()).optimizers
    gone = [path for path in optimizers_in(saved) if path and path not in mine]
    return {name for name in saved.leaves if any(name.startswith(f"{path}/") for path in gone)}


def opaque(obj: Any) -> bool:
    """Objects with layers of the user's that keep variables or files their own way."""
    if not isinstance(obj, keras.Layer) or not is_built(obj):
        return False
    state = survey(obj, Scope())
    return bool(state.stores or state.files)


def examine(tree: StateTree, like: Any, scope: Scope) -> None:
    """Refuse values that would make a layer open or write a path; changes nothing.

    Raises:
        UntrustedError: a vocabulary that is a path, or a file name that leads elsewhere.
        CorruptionError: not a layer's state.
    """
    check_values(survey(like, scope), tree, "the snapshot")


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Make `like` what was saved; it and its optimizers are built first where they are not."""
    _sync(like)
    state = survey(like, scope)
    if not is_built(like) and any(name not in state.variables for name in tree.leaves):
        build(like, tree)
        state = survey(like, scope)
        check_built(like, tree, state.variables)
    for path, optimizer in state.optimizers.items():
        slots, before_first_step = _slots_in(tree, path, state), _is_reset(tree, path, optimizer)
        if slots and not optimizer.built:
            build_slots(optimizer, trained_by(optimizer, slots, _candidates(like, state, scope), like))
            if any(name not in tree.leaves for name in _names(path, survey(like, scope))):
                reset(optimizer)  # a part was selected: the rest starts as it always does
        elif before_first_step and any(name in tree.leaves for name in _names(path, state)):
            reset(optimizer)
    restore(tree, survey(like, scope))
    return like


def _other_leaves(state: State) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {name: asset.read() for name, asset in state.assets.items()}
    for place, (_, stored) in state.stores.items():
        leaves.update((join_name(place, key), stored_leaf(value)) for key, value in stored.items())
    for place, layer in state.files.items():
        leaves.update((join_name(place, name), content) for name, content in files_of(layer).items())
    return leaves


def _plan_slots(
    path: str, optimizer: Any, model: Any, saved: StateTree, scope: Scope, state: State, leaves: dict[str, Leaf]
) -> None:
    """Add the slots that an unbuilt optimizer will have; drop those that the snapshot resets."""
    slots = _slots_in(saved, path, state)
    if slots and not optimizer.built:
        trained = trained_by(optimizer, slots, _candidates(model, state, scope), model)
        other = built_like(optimizer, trained)
        for name, variable in variables_of(other, owner_in(state, scope)).items():
            leaves.setdefault(join_name(path, name), planned_leaf(variable))
    elif _is_reset(saved, path, optimizer):
        for name in _names(path, state):
            if name not in saved.leaves:
                del leaves[name]


def _of_another_algorithm(state: State, saved: StateTree) -> dict[str, tuple[str, str]]:
    """Path → classes (saved, live) of optimizers whose state was saved by one of another class."""
    found = {path: (algorithm_in(saved, path), type(live).__name__) for path, live in state.optimizers.items()}
    return {path: (was, now) for path, (was, now) in found.items() if was is not None and was != now}


def _slots_in(tree: StateTree, path: str, state: State) -> list[str]:
    """Names under an optimizer that it does not have yet, relative to it."""
    prefix = f"{path}/" if path else ""
    return [n[len(prefix) :] for n in tree.leaves if n.startswith(prefix) and n not in state.variables]


def _is_reset(tree: StateTree, path: str, optimizer: Any) -> bool:
    """Whether the snapshot is from before the optimizer's first step: its slots are then as if newly made."""
    return bool(optimizer.built) and optimizers_in(tree).get(path) is False


def _names(path: str, state: State) -> list[str]:
    return [name for name in state.variables if not path or name.startswith(f"{path}/")]


def _candidates(model: Any, state: State, scope: Scope) -> dict[str, Any]:
    """Name → variable that an optimizer could train, in Keras' order."""
    if isinstance(model, keras.Layer):
        names = state.owners
        return {names[id(v)]: v for v in model.trainable_variables if id(v) in names}
    return {name: _owned[key] for key, name in scope.owners.items() if key in _owned}


def _sync(obj: Any) -> None:
    """On JAX a running epoch holds the state elsewhere; this brings it back into the variables."""
    if callable(getattr(obj, "jax_state_sync", None)):
        obj.jax_state_sync()


def _global_generator() -> Any:
    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def _capture_random() -> StateTree:
    generator = _global_generator()
    return StateTree({} if generator is None else {"state": leaf_of(generator.state)})


def _restore_random(tree: StateTree) -> None:
    saved = tree.leaves.get("state")
    if not isinstance(saved, Tensor):  # it did not exist: the next use makes it, from Python's random state
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
        return
    live = leaf_of(global_seed_generator().state)
    target = counter_leaf(live, saved) if is_counter(live, saved) else live
    assert target.write is not None
    target.write(saved.read())


TENSOR_KINDS = (
    TensorKind(
        "keras",
        lambda obj: isinstance(obj, keras.Variable),
        leaf_of,
        lambda leaf: keras.Variable(leaf.numpy().copy(), dtype=leaf.spec.dtype),
    ),
)
RANDOM_STATES = (RandomState("keras", _capture_random, _restore_random),)
