"""The state of Keras optimizers by owner and slot: `layers/dense/vars/0/momentum`, never an index.

Invariant: every variable the optimizer tracks gets exactly one name, or the optimizer is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from safepoint.adapters.keras.placeholders import placeholders
from safepoint.adapters.keras.walk import undisturbed
from safepoint.errors import UnsupportedError
from safepoint.tree import join_name

OwnerOf = Callable[[Any], str | None]


def variables_of(optimizer: Any, owner_of: OwnerOf) -> dict[str, Any]:
    """Name → variable of an optimizer and of those it wraps: `iterations`, `<owner>/<slot>`, `inner_optimizer/...`.

    Raises:
        UnsupportedError: a slot whose owner is unknown, or two variables of one name.
    """
    found: dict[str, Any] = {}
    names = {**dict(_scalars(optimizer)), **dict(_slots(optimizer, owner_of))}
    for variable in optimizer._variables:
        name = names.get(id(variable)) or _by_its_own_name(optimizer, variable, owner_of)
        if name in found:
            raise UnsupportedError(
                f"two variables of {type(optimizer).__name__} would be called {name!r}",
                hint="give them different names in the optimizer's build()",
            )
        found[name] = variable
    for attribute, inner in inner_optimizers(optimizer):
        found |= {join_name(attribute, name): variable for name, variable in variables_of(inner, owner_of).items()}
    return found


def inner_optimizers(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """The optimizers that an optimizer wraps (`LossScaleOptimizer`), by attribute."""
    for attribute, value in vars(optimizer).items():
        if isinstance(value, keras.optimizers.Optimizer):
            yield attribute.lstrip("_"), value


def counters_of(optimizer: Any) -> set[int]:
    """`id` of the step counts, whose width differs between backends."""
    return {id(v) for v in optimizer._variables if "int" in str(v._dtype) and len(v.shape) == 0}


def trained_by(optimizer: Any, slots: Iterable[str], owners: Mapping[str, Any], model: Any = None) -> list[Any]:
    """The variables that an optimizer which is not built yet is to be built for, in Keras' order.

    Those of the model it was compiled into; else, of `owners` (name → variable), those that saved `slots` belong to.
    """
    if model is not None and getattr(model, "optimizer", None) is optimizer:
        return list(model.trainable_variables)
    wanted = {slot.rpartition("/")[0] for slot in slots}
    wanted |= {name.removeprefix("inner_optimizer/") for name in wanted}
    return [variable for name, variable in owners.items() if name in wanted]


def built_like(optimizer: Any, variables: list[Any]) -> Any:
    """A new optimizer of the same configuration, built for `variables`; its slots hold nothing that matters.

    Raises:
        UnsupportedError: its configuration does not make a new one.
    """
    try:
        with undisturbed(), placeholders():
            other = type(optimizer).from_config(optimizer.get_config())
            other.build(variables)
    except Exception as error:
        raise UnsupportedError(
            f"{type(optimizer).__name__} has no slots yet and cannot be built beforehand",
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            hint="build it first: optimizer.build(model.trainable_variables)",
        ) from error
    return other


def build_slots(optimizer: Any, variables: list[Any]) -> None:
    """Build a live optimizer whose slots are about to be restored: they hold nothing yet, and cost nothing."""
    with placeholders():
        optimizer.build(variables)


def reset(optimizer: Any) -> None:
    """Slots as they were before the first step: what a snapshot of a not yet built optimizer means."""
    with undisturbed():
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(list(optimizer._trainable_variables))
    all_of = (optimizer, *(inner for _, inner in inner_optimizers(optimizer)))
    kept = {id(kept) for one in all_of for kept in (one._iterations, one._learning_rate)}
    for variable, initial in zip(optimizer.variables, fresh.variables, strict=True):
        if id(variable) not in kept:
            variable.assign(initial)


def _slots(optimizer: Any, owner_of: OwnerOf) -> Iterator[tuple[int, str]]:
    """(id, name) of variables kept in lists that run parallel to the trained variables."""
    trained = list(optimizer._trainable_variables)
    for attribute, values in vars(optimizer).items():
        if attribute in {"_trainable_variables", "_variables"} or not isinstance(values, list | tuple):
            continue
        if len(values) != len(trained) or not any(isinstance(value, keras.Variable) for value in values):
            continue
        for owner, value in zip(trained, values, strict=True):
            if isinstance(value, keras.Variable):
                slot = _suffix(value, owner) or attribute.lstrip("_")
                yield id(value), join_name(_owner_name(optimizer, owner, owner_of), slot)


def _scalars(optimizer: Any) -> Iterator[tuple[int, str]]:
    for attribute, value in vars(optimizer).items():
        if isinstance(value, keras.Variable):
            yield id(value), attribute.lstrip("_")


def _by_its_own_name(optimizer: Any, variable: Any, owner_of: OwnerOf) -> str:
    """For optimizers that keep slots elsewhere: Keras names a slot after its owner's path."""
    owners = [owner for owner in optimizer._trainable_variables if _suffix(variable, owner)]
    if not owners:
        return str(variable.name)
    longest = max(len(_stem(owner)) for owner in owners)
    nearest = [owner for owner in owners if len(_stem(owner)) == longest]
    if len(nearest) > 1:
        raise UnsupportedError(
            f"{type(optimizer).__name__}: variable {variable.name!r} could belong to any of {len(nearest)} variables",
            hint="keep slots in lists parallel to the variables given to build(), as Keras' own optimizers do",
        )
    return join_name(_owner_name(optimizer, nearest[0], owner_of), _suffix(variable, nearest[0]))


def _suffix(variable: Any, owner: Any) -> str:
    """`momentum` of `sequential_dense_kernel_momentum`, or nothing."""
    stem, name = _stem(owner), str(variable.name)
    return name[len(stem) + 1 :] if name.startswith(f"{stem}_") else ""


def _stem(owner: Any) -> str:
    """How Keras begins the names of a variable's slots; `tf.Variable`s have no path."""
    return str(getattr(owner, "path", None) or owner.name).replace("/", "_").replace(":", "_")


def _owner_name(optimizer: Any, owner: Any, owner_of: OwnerOf) -> str:
    name = owner_of(owner)
    if name is None:
        raise UnsupportedError(
            f"{type(optimizer).__name__} trains {getattr(owner, 'path', owner)!r}, which is not in this checkpoint",
            hint="track the model that it belongs to as well",
        )
    return name
