"""Everything in a Keras object that a resumed run needs, by structural name.

Invariant: a variable that Keras counts among the object's weights has a name here, or the object is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import keras

from safepoint.adapters.containers import kind_of
from safepoint.adapters.keras.assets import FILES, Asset, assets_of, has_files
from safepoint.adapters.keras.optimizers import counters_of, inner_optimizers, variables_of
from safepoint.adapters.keras.walk import parts_of
from safepoint.adapters.protocol import Scope
from safepoint.errors import UnsupportedError
from safepoint.tree import is_value, join_name

VARS = "vars"


@final
@dataclass(frozen=True, slots=True)
class State:
    """What `survey` finds; names are relative to the object.

    Attributes:
        variables: name → variable; one variable may have several names.
        counters: `id` of variables whose integer width differs between backends.
        assets: name → state that is not in variables.
        stores: path → a layer of the user's with its own `save_own_variables`, and what that stores by key.
        files: path → a layer of the user's with its own `save_assets`.
        layers: path → layer or model.
        optimizers: path → optimizer, without those tracked under a name of their own.
        stored_owners: `id` of a variable in such a store → what optimizers call it.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    counters: set[int] = field(default_factory=set)
    assets: dict[str, Asset] = field(default_factory=dict)
    stores: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    stored_owners: dict[int, str] = field(default_factory=dict)

    @property
    def owners(self) -> dict[int, str]:
        """`id(variable)` → its first name; optimizers' own variables own nothing."""
        owners = dict(self.stored_owners)
        for name, variable in self.variables.items():
            owners.setdefault(id(variable), name)
        return owners


def survey(obj: Any, scope: Scope, *, with_optimizers: bool = True) -> State:
    """Find the state of a Keras object, optimizers included.

    Raises:
        UnsupportedError: something in it cannot be named or kept.
    """
    state = State()
    if isinstance(obj, keras.optimizers.Optimizer):
        add_optimizer(obj, "", state, lambda variable: scope.owners.get(id(variable)))
    elif isinstance(obj, keras.random.SeedGenerator):
        _add_generator("", obj, state)
    elif isinstance(obj, keras.Metric):
        state.variables.update((f"{VARS}/{index}", variable) for index, variable in enumerate(obj.variables))
    else:
        _survey_layer(obj, scope, state, with_optimizers=with_optimizers)
    return state


def add_optimizer(optimizer: Any, path: str, state: State, owner_of: Callable[[Any], str | None]) -> None:
    """Add an optimizer's variables to `state` under `path`."""
    state.optimizers[path] = optimizer
    for name, variable in variables_of(optimizer, owner_of).items():
        state.variables[join_name(path, name)] = variable
    for one in (optimizer, *(inner for _, inner in inner_optimizers(optimizer))):
        state.counters.update(counters_of(one))


def owner_in(state: State, scope: Scope) -> Callable[[Any], str | None]:
    """How an optimizer's owners are called: by the object's own names, else by the checkpoint's."""
    owners = state.owners
    return lambda variable: owners.get(id(variable), scope.owners.get(id(variable)))


def _survey_layer(root: Any, scope: Scope, state: State, *, with_optimizers: bool) -> None:
    optimizers: dict[str, Any] = {}
    for path, part in parts_of(root).items():
        if path and id(part) in scope.separate:
            continue
        if isinstance(part, keras.optimizers.Optimizer):
            optimizers[path] = part
        elif isinstance(part, keras.Layer):
            state.layers[path] = part
            _add_layer(part, path, state)
    _refuse_lost(root, state, scope)
    owner_of = owner_in(state, scope)
    for path, optimizer in optimizers.items() if with_optimizers else ():
        add_optimizer(optimizer, path, state, owner_of)


def is_built(obj: Any) -> bool:
    """Whether a layer or model has the variables it is ever going to have."""
    return not isinstance(obj, keras.Layer) or bool(obj.built)


def _add_layer(layer: Any, path: str, state: State) -> None:
    for name, asset in assets_of(layer):
        state.assets[join_name(path, name)] = asset
    if has_files(layer):
        state.files[join_name(path, FILES)] = layer
    for name, generator in _seed_generators(layer):
        _add_generator(join_name(path, name), generator, state)
    for name, variable in _foreign_variables(layer):
        state.variables[join_name(path, name)] = variable
    place = join_name(path, VARS)
    named, stored = _own_variables(layer)
    if stored is not None:
        state.stores[place] = (layer, stored)
        keys = {id(value): key for key, value in stored.items()}
        for index, variable in enumerate(layer._trainable_variables + layer._non_trainable_variables):
            state.stored_owners[id(variable)] = join_name(place, keys.get(id(variable), str(index)))
    for key, variable in named.items():
        state.variables[join_name(place, key)] = variable


def _add_generator(path: str, generator: Any, state: State) -> None:
    state.variables[join_name(path, "state")] = generator.state
    state.counters.add(id(generator.state))


def _own_variables(layer: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A layer's own variables by the keys of Keras' weights file, or what its own `save_own_variables` stores.

    Keras' own classes with such a method (Dense, Embedding, convolutions) store what an exported model needs: with
    LoRA a merged kernel. A run goes on from the variables themselves, so those are kept, under the same keys.
    """
    own = layer._trainable_variables + layer._non_trainable_variables
    method = type(layer).save_own_variables
    if method is keras.Layer.save_own_variables:
        return {str(index): variable for index, variable in enumerate(own)}, None
    ours = str(method.__module__).startswith("keras.")
    if ours and not own:
        return {}, None  # lookup layers: `assets` knows them
    stored: dict[str, Any] = {}
    layer.save_own_variables(stored)
    if not ours:
        if all(isinstance(value, keras.Variable) for value in stored.values()) and not _loads_itself(layer):
            return stored, None
        return {}, stored
    return _keyed(layer, own, stored), None


def _loads_itself(layer: Any) -> bool:
    return type(layer).load_own_variables is not keras.Layer.load_own_variables


def _keyed(layer: Any, own: list[Any], stored: dict[str, Any]) -> dict[str, Any]:
    keys = {id(value): key for key, value in stored.items() if isinstance(value, keras.Variable)}
    computed = [key for key, value in stored.items() if not isinstance(value, keras.Variable)]
    attributes = {id(value): name for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    named: dict[str, Any] = {}
    for variable in own:
        attribute = attributes.get(id(variable), str(variable.name)).lstrip("_")
        if id(variable) in keys:
            named[keys[id(variable)]] = variable
        elif computed and not attribute.startswith("lora_"):
            named[computed.pop(0)] = variable  # the kernel that the stored one was computed from
        else:
            named[attribute] = variable
    return dict(sorted(named.items()))


def _foreign_variables(layer: Any) -> Iterator[tuple[str, Any]]:
    """Variables of the backend itself (`self.step = tf.Variable(0)`) in a layer of the user's; Keras forgets those."""
    if type(layer).__module__.startswith("keras.") or keras.backend.backend() != "tensorflow":
        return
    for name, value in sorted(vars(layer).items()):
        if name.startswith("_self_") or isinstance(value, keras.Variable):
            continue
        for key, child in _flat(name, value):
            kind = None if is_value(child) else kind_of(child)
            if kind is not None and kind.kind == "tensorflow":
                yield key, child


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((join_name(name, str(key)), child) for key, child in value.items())
    elif isinstance(value, list | tuple):
        yield from ((join_name(name, str(index)), child) for index, child in enumerate(value))
    else:
        yield name, value


def _seed_generators(layer: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, value in sorted(vars(layer).items()):
        if isinstance(value, keras.random.SeedGenerator) and id(value) not in seen:
            seen.add(id(value))
            yield name.lstrip("_"), value
    rest = [generator for generator in layer._seed_generators if id(generator) not in seen]
    for index, generator in enumerate(rest):
        yield f"seed_generators/{index}", generator


def _refuse_lost(root: Any, state: State, scope: Scope) -> None:
    """A layer kept in a set or in an object of another kind is trained but cannot be found again by name."""
    found = {id(variable) for variable in state.variables.values()}
    found.update(id(variable) for layer, _ in state.stores.values() for variable in layer.weights)
    lost = [variable for variable in root.weights if id(variable) not in found and id(variable) not in scope.owners]
    if lost:
        raise UnsupportedError(
            f"{len(lost)} variables of {type(root).__name__} cannot be reached by an attribute, "
            f"for example {lost[0].path!r}",
            hint="keep layers in attributes, lists or dictionaries of the model",
        )
