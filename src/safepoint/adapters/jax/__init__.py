"""JAX: any pytree, whose restore makes new values, and Flax NNX objects, restored in place.

Invariant: containers, types, static fields, functions, devices and shardings are the live tree's; the snapshot gives
arrays, keys and values. Flax, Optax and Equinox are never imported: their objects are pytrees, or already loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from safepoint.adapters.containers import MAX_DEPTH
from safepoint.adapters.jax import leaves, nnx, placing, trees
from safepoint.adapters.protocol import Scope, TensorKind
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, Leaf, StateTree, Tensor, TensorSpec

OPAQUE = False
FORMAT = "jax"

TENSOR_KINDS = (
    TensorKind("jax", lambda obj: isinstance(obj, jax.Array), leaves.to_plain_leaf, leaves.build, immutable=True),
)


def handles(obj: Any) -> bool:
    """NNX objects, arrays, keys, and containers that hold them or are of a type that JAX alone knows."""
    return nnx.is_object(obj) or _is_tree(obj)


def is_model(obj: Any) -> bool:
    """Flax and Equinox modules, and functions: those of a tree of parameters."""
    from safepoint.adapters.jax.whole_model import styles  # late: loads `jax.export`, which most programs do without

    return styles.name_of(obj) is not None


def immutable(obj: Any) -> bool:
    """Everything but NNX objects: a restore makes a new value."""
    return not nnx.is_object(obj)


def refuse(obj: Any) -> None:
    """Refuse what can never be saved, when it is tracked.

    Raises:
        UnsupportedError: something inside cannot be saved, or there is nothing but functions (an optax transformation).
    """
    tree = _capture(obj, Scope(), alive=False)
    if not tree.leaves and any(trees.is_live(leaf) for _, leaf in _leaves(obj, Scope())):
        raise UnsupportedError(
            f"a {type(obj).__name__} of functions has no state",
            hint="track the state, not the transformation: opt_state=optimizer.init(params)",
        )


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """Optimizer states have the structure of their parameters, so nobody asks who owns what."""
    del obj
    return ()


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of a tree; names are keys, positions and fields joined by slashes.

    Raises:
        UnsupportedError: something inside cannot be saved, or was donated; named by its path. Or several JAX processes
            train together.
    """
    if jax.process_count() > 1:
        raise UnsupportedError(
            f"{jax.process_count()} JAX processes train together: this version saves those of one process",
            hint="gather the state in one process, and track it in a program of one process",
        )
    return _capture(obj, scope, alive=True)


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The live leaves, with what the snapshot decides about: numbers, and how long lists of plain values are."""
    live = _capture(like, scope, alive=False)
    lists = [name for name, leaf in _leaves(like, scope) if trees.is_data(leaf)]
    return StateTree(placing.accepted(live, saved, lists), live.skeleton)


def advice(like: Any, saved: StateTree, scope: Scope, differs: Iterable[tuple[TensorSpec, TensorSpec]]) -> str | None:
    """What to do about (live, saved) specs of different dtype: 64-bit types may only be switched off."""
    del like, saved, scope
    for _, found in differs:
        try:
            leaves.check_width(found)
        except UnsupportedError as error:
            return error.hint
    return None


def examine(tree: StateTree, like: Any, scope: Scope) -> None:
    """Refuse what the leaves' specs do not tell; changes nothing.

    Raises:
        MismatchError: keys of another kind, 64-bit values without `jax_enable_x64`, or a leaf that was donated and is
            not restored.
    """
    words = placing.words_of(tree.skeleton)
    differs: dict[str, tuple[object, object]] = {}
    hints: list[str] = []
    for name, live in _leaves(like, scope):
        leaf = tree.leaves.get(name)
        if isinstance(leaf, Tensor) and not trees.is_data(live):
            try:
                leaves.check_kind(words.get(name, ""), live)
                if placing.maker(words.get(name, ""), live) is None:
                    leaves.check_width(leaf.spec)
            except (MismatchError, UnsupportedError) as error:
                differs[name] = (error.expected or "", error.found or error.message)
                hints += [error.hint or "make the live key with the same implementation: jax.random.key(0, impl=...)"]
        elif name not in tree.leaves and leaves.is_deleted(live):
            differs[name] = ("donated or deleted", "not restored")
            hints += ["restore it too, or give the checkpoint the current value first"]
    if differs:
        lines = [
            f"differs     {name or 'the array'}   live {live}, saved {saved}" for name, (live, saved) in differs.items()
        ]
        raise MismatchError("\n    ".join(["what was saved does not fit", *lines]), differs=differs, hint=hints[0])


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """A new tree of the live one's types with the saved leaves; NNX objects are changed and returned."""
    words = placing.words_of(tree.skeleton)

    def place(name: str, live: Any) -> Any:
        return placing.put(tree.leaves, words, name, live)

    if not nnx.is_object(like):
        return trees.rebuild(like, place)
    nnx.update(like, place, scope)
    return like


def _capture(obj: Any, scope: Scope, *, alive: bool) -> StateTree:
    found: dict[str, Leaf] = {}
    node = nnx.capture(obj, found, scope, alive=alive) if nnx.is_object(obj) else trees.capture(obj, found, alive=alive)
    return StateTree(found, Branch("dict") if node is None else node)


def _leaves(obj: Any, scope: Scope) -> Iterator[tuple[str, Any]]:
    return nnx.leaves(obj, scope) if nnx.is_object(obj) else trees.walk(obj)


def _is_tree(obj: Any, depth: int = 0) -> bool:
    if isinstance(obj, jax.Array | jax.ShapeDtypeStruct):
        return True
    if not trees.is_plain(obj):
        return not nnx.is_object(obj) and trees.is_node(obj)
    if depth > MAX_DEPTH or trees.level(obj) is None:  # a dictionary of a type that JAX does not know
        return False
    return any(_is_tree(child, depth + 1) for child in (obj.values() if isinstance(obj, dict) else obj))
