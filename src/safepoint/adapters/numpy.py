"""NumPy arrays and scalars, NumPy's and Python's generators, and their global random states."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from safepoint.adapters.containers import capture, rebuild
from safepoint.adapters.protocol import RandomState, Scope, TensorKind
from safepoint.errors import MismatchError
from safepoint.tree import Leaf, StateTree, Tensor

OPAQUE = False

TENSOR_KINDS = (
    TensorKind("numpy", lambda obj: isinstance(obj, np.ndarray), Tensor.of, lambda leaf: leaf.numpy().copy()),
    TensorKind(
        "numpy.scalar",
        lambda obj: isinstance(obj, np.generic),
        lambda obj: Tensor.of(np.asarray(obj), live=False),
        lambda leaf: leaf.numpy().copy()[()],
        immutable=True,
    ),
)


def handles(obj: Any) -> bool:
    """Generators; arrays are handled wherever plain trees are."""
    return isinstance(obj, random.Random | np.random.Generator | np.random.RandomState | np.random.BitGenerator)


def per_rank(obj: Any) -> bool:
    """Each process draws its own numbers."""
    del obj
    return True


def owners(obj: Any) -> Iterable[tuple[str, Any]]:
    """Generators own no parameters."""
    del obj
    return ()


def to_tree(obj: Any, scope: Scope) -> StateTree:
    """The state of a generator, with the name of its algorithm, so that it is never put into another."""
    del scope
    return _python_tree(obj) if isinstance(obj, random.Random) else _numpy_tree(obj)


def template(like: Any, saved: StateTree, scope: Scope) -> StateTree:
    """The saved state, if it is of the same algorithm.

    Raises:
        MismatchError: it is another algorithm's.
    """
    live = to_tree(like, scope).leaves.get("algorithm")
    found = saved.leaves.get("algorithm")
    if live != found:
        raise MismatchError("a generator of another algorithm was saved", expected=live, found=found)
    return saved


def examine(tree: StateTree, like: Any, scope: Scope) -> None:
    """A generator is restored whole or not at all.

    Raises:
        MismatchError: part of its state is missing.
    """
    missing = [name for name in to_tree(like, scope).leaves if name not in tree.leaves]
    if missing:
        raise MismatchError("part of a generator's state cannot be restored", missing=missing)


def from_tree(tree: StateTree, like: Any, scope: Scope) -> Any:
    """Continue `like` where the saved generator was."""
    del scope
    if isinstance(like, random.Random):
        _set_python(like, tree)
    else:
        _set_numpy(like, tree)
    return like


def _python_tree(generator: random.Random) -> StateTree:
    version, words, gauss = generator.getstate()
    leaves: dict[str, Leaf] = {
        "algorithm": "python.MT19937",
        "version": version,
        "words": Tensor.of(np.array(words, dtype=np.uint32), live=False),
        "gauss": gauss,
    }
    return StateTree(leaves)


def _set_python(generator: random.Random, tree: StateTree) -> None:
    words = tree.leaves["words"]
    assert isinstance(words, Tensor)
    generator.setstate((tree.leaves["version"], tuple(words.numpy().tolist()), tree.leaves["gauss"]))


def _bits(obj: Any) -> Any:
    if isinstance(obj, np.random.Generator):
        return obj.bit_generator
    return obj


def _numpy_tree(obj: Any) -> StateTree:
    bits = _bits(obj)
    state = bits.get_state(legacy=False) if isinstance(bits, np.random.RandomState) else bits.state
    leaves: dict[str, Leaf] = {"algorithm": f"numpy.{state['bit_generator']}"}
    return StateTree(leaves, capture(state, leaves, "state"))


def _set_numpy(obj: Any, tree: StateTree) -> None:
    bits = _bits(obj)
    state = rebuild(tree.skeleton, tree.leaves)
    if isinstance(bits, np.random.RandomState):
        bits.set_state(state)
    else:
        bits.state = state


def _python_capture() -> StateTree:
    return _python_tree(random._inst)  # the module's functions are its methods


def _numpy_global() -> np.random.RandomState:
    return np.random.mtrand._rand  # what np.random.seed and np.random.rand use


RANDOM_STATES = (
    RandomState("python", _python_capture, lambda tree: _set_python(random._inst, tree)),
    RandomState("numpy", lambda: _numpy_tree(_numpy_global()), lambda tree: _set_numpy(_numpy_global(), tree)),
)
