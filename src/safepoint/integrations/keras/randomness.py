"""The global generators that data draws from, as a plain dictionary that a snapshot can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from safepoint.adapters import random_states
from safepoint.tree import Leaf, StateTree, Tensor

# TensorFlow's own is left out: no data draws from it after its pipeline is made, and setting it clears kernel caches.
_DRAWN_FROM = frozenset({"python", "numpy", "torch", "keras"})


def captured() -> dict[str, dict[str, Any]]:
    """Generator → name → array or value; copies."""
    states = {name: state for name, state in random_states().items() if name in _DRAWN_FROM}
    return {
        name: {leaf: x.numpy().copy() if isinstance(x, Tensor) else x for leaf, x in state.capture().leaves.items()}
        for name, state in states.items()
    }


def restore(saved: dict[str, dict[str, Any]]) -> None:
    """Make the generators what they were; those that are not in use here are left out."""
    for name, state in random_states().items():
        if name in saved:
            leaves: dict[str, Leaf] = {
                leaf: Tensor.of(x) if isinstance(x, np.ndarray) else x for leaf, x in saved[name].items()
            }
            state.restore(StateTree(leaves, state.capture().skeleton))
