"""Anything with `state_dict` and `load_state_dict`: schedulers, scalers, loaders, the user's own classes.

Invariant: `load_state_dict` gets a structure like the one that the object itself returns (its dictionaries' types,
its own kinds of tensors), and nothing in it aliases the snapshot's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from safepoint.adapters.containers import capture, renew
from safepoint.adapters.protocol import Scope
from safepoint.errors import MismatchError, UnsupportedError
from safepoint.tree import Branch, Leaf, Node, StateTree

OPAQUE = True
_KIND = "state_dict"


def handles(obj: Any) -> bool:
    """Objects (not classes) with both methods."""
    methods = (getattr(obj, "state_dict", None), getattr(obj, "load_state_dict", None))
    return not isinstance(obj, type) and all(callable(method) for method in methods)


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """Nothing is known of what is inside."""
    del obj
    return ()


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """What `obj.state_dict()` returns.

    Raises:
        UnsupportedError: it holds something that cannot be kept; named by its path.
    """
    del scope
    leaves: dict[str, Leaf] = {}
    try:
        skeleton = capture(obj.state_dict(), leaves)
    except UnsupportedError as error:
        name = type(obj).__name__
        raise UnsupportedError(
            f"state_dict() of {name}: {error.message}", expected=error.expected, found=error.found, hint=error.hint
        ) from error
    return StateTree(leaves, Branch(_KIND, (type(obj).__name__,), (skeleton,)))


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The saved state as it is: only `load_state_dict` knows what it accepts.

    Many accept anything: a cosine schedule becomes half a step schedule without a word. So another class with other
    keys is refused; a class of another name with the same keys (a wrapper, a renamed one) is not.

    Raises:
        MismatchError: what was saved under this name was no such object's state.
    """
    del scope
    node, inner = saved.skeleton, _inner(saved)
    kind = str(node.keys[0]) if isinstance(node, Branch) and node.keys else type(like).__name__  # older: nothing said
    if kind != type(like).__name__ and isinstance(inner, Branch):
        live = like.state_dict()
        if isinstance(live, dict) and set(live) != set(inner.keys):
            raise MismatchError(
                f"{type(like).__name__} cannot take what was saved under its name",
                expected=f"the state of a {type(like).__name__}",
                found=f"the state of a {kind!s}",
                hint="restore the others with select=, and let the new object start afresh",
            )
    if inner is None:
        found = saved.skeleton.kind if isinstance(saved.skeleton, Branch) else "a single leaf"
        raise MismatchError(
            f"{type(like).__name__} cannot take what was saved under its name",
            expected="the state of an object with load_state_dict",
            found=found,
        )
    return saved


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Call `like.load_state_dict` with the saved state; whatever it raises passes through."""
    del scope
    inner = _inner(tree)
    assert inner is not None  # template saw to it
    like.load_state_dict(renew(inner, like.state_dict(), tree.leaves))
    return like


def _inner(tree: StateTree) -> Node | None:
    node = tree.skeleton
    return node.children[0] if isinstance(node, Branch) and node.kind == _KIND else None
