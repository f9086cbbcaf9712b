"""Unbuilt models and optimizers: what they would become, learned without touching them, and becoming it.

Invariant: `preview` works on copies; only `build` changes a live object.
"""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

import keras

from safepoint.adapters.keras.leaves import spec_of
from safepoint.adapters.keras.placeholders import placeholders
from safepoint.adapters.keras.walk import undisturbed
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, StateTree, Tensor

KIND = "keras"
OPTIMIZER = "keras.optimizer"
_OF_EVERY_LAYER = {"name", "trainable", "dtype"}


def skeleton_of(obj: Any, optimizers: dict[str, Any]) -> Branch:
    """What is kept beside the leaves: class name and build configuration, and which optimizers there are.

    Keys of the branch: class name, build configuration as JSON or None; of each child: path, class name, built.
    """
    children = tuple(Branch(OPTIMIZER, (path, type(o).__name__, bool(o.built))) for path, o in optimizers.items())
    return Branch(KIND, (type(obj).__name__, _build_config(obj)), children)


def check_kind(like: Any, saved: StateTree) -> None:
    """Refuse the state of anything but a Keras object; a stranger's file, which has names only, may pass.

    Raises:
        MismatchError: another framework's object was saved under this name.
    """
    node = saved.skeleton
    if not isinstance(node, Branch) or (node.kind not in {KIND, "dict"}) or (node.kind == "dict" and node.children):
        raise MismatchError(
            f"{type(like).__name__} cannot take what was saved under its name",
            expected="the state of a Keras object",
            found=node.kind if isinstance(node, Branch) else "a single leaf",
        )


def optimizers_in(saved: StateTree) -> dict[str, bool]:
    """Path → whether it was built, of the optimizers that a saved tree has."""
    node = saved.skeleton
    if isinstance(node, Branch) and node.kind == KIND:
        return {
            str(child.keys[0]): bool(child.keys[2])
            for child in node.children
            if isinstance(child, Branch) and child.kind == OPTIMIZER and len(child.keys) == 3
        }
    return {"optimizer": True} if any(name.startswith("optimizer/") for name in saved.leaves) else {}


def algorithm_in(saved: StateTree, path: str) -> str | None:
    """Class name of a saved optimizer, or None where the snapshot does not say."""
    node = saved.skeleton
    if not isinstance(node, Branch) or node.kind != KIND:
        return None
    return next((str(c.keys[1]) for c in node.children if isinstance(c, Branch) and c.keys[:1] == (path,)), None)


def build_config_in(saved: StateTree) -> Any:
    """The build configuration of a saved tree, or None."""
    node = saved.skeleton
    if not isinstance(node, Branch) or node.kind != KIND or len(node.keys) < 2 or not isinstance(node.keys[1], str):
        return None
    return _tuples(json.loads(node.keys[1]))


def preview(obj: Any, saved: StateTree) -> Any:
    """A built copy of an unbuilt layer or model, with variables that hold nothing.

    Raises:
        UnsupportedError: it must be called once, by the user.
    """
    config, arguments = build_config_in(saved), _arguments(obj)
    if config is None or arguments is None:
        what = "the snapshot has no build configuration" if config is None else "it has no get_config()"
        raise _call_it_once(obj, what)
    try:
        with undisturbed(), placeholders():
            copy = type(obj).from_config(arguments)
            _build(copy, config)
    except Exception as error:
        raise _call_it_once(obj, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}") from error
    if not copy.variables and any("/vars/" in f"/{name}" for name in saved.leaves):
        raise _call_it_once(obj, "its build() does not create its variables")
    return copy


def build(obj: Any, saved: StateTree) -> None:
    """Build a live object as `preview` showed it can be built."""
    _build(obj, build_config_in(saved))


def check_built(obj: Any, saved: StateTree, variables: dict[str, Any]) -> None:
    """Refuse to write anything into an object that was not built as its copy was.

    Raises:
        UnsupportedError: a saved tensor has another shape, or no place.
    """
    for name, variable in variables.items():
        leaf = saved.leaves.get(name)
        if isinstance(leaf, Tensor) and leaf.spec.shape != spec_of(variable).shape:
            raise _call_it_once(obj, f"{name} was built as {spec_of(variable)}, and {leaf.spec} was saved")


def _build(obj: Any, config: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns where it did not build; the callers look for themselves
        obj.build_from_config(config)
    obj.built = True  # as Keras does when it loads: a model built by a trial run does not say so itself


def _arguments(obj: Any) -> dict[str, Any] | None:
    """What makes another one like it, or None if it does not tell.

    Without a `get_config` of its own, Keras tells of a layer the arguments it was made with, but of a model only their
    defaults: such a configuration would make another model.
    """
    parameters = list(inspect.signature(type(obj).__init__).parameters.values())[1:]
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    names = {
        p.name for p in parameters if p.kind not in {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    }
    if isinstance(obj, keras.Model) and hasattr(type(obj).get_config, "_is_default") and names - _OF_EVERY_LAYER:
        return None
    config = dict(obj.get_config())
    return {k: v for k, v in config.items() if takes_all or k in names or k not in _OF_EVERY_LAYER}


def _call_it_once(obj: Any, found: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(obj).__name__} {getattr(obj, 'name', '')!r} is not built: it has no variables to restore into",
        found=found,
        hint="call it once on a batch, or model.build(input_shape)",
    )


def _build_config(obj: Any) -> str | None:
    if not isinstance(obj, keras.Layer):
        return None
    try:
        return json.dumps(obj.get_build_config())
    except (TypeError, ValueError, NotImplementedError):
        return None  # a user's own, which only their build_from_config understands: restoring asks for a built model


def _tuples(config: Any) -> Any:
    """Shapes are tuples again: JSON made lists of them."""
    if isinstance(config, dict):
        return {key: _tuples(value) for key, value in config.items()}
    if isinstance(config, list):
        return tuple(_tuples(value) for value in config)
    return config
