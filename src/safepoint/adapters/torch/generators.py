"""torch's random generators: single ones, and the default ones of every device in use."""

from __future__ import annotations

import logging
from typing import Any

import torch

from safepoint.adapters.protocol import RandomState
from safepoint.adapters.torch.tensors import build, leaf
from safepoint.errors import MismatchError
from safepoint.tree import Leaf, StateTree, Tensor

_LOG = logging.getLogger(__name__)
_DEVICES = ("cuda", "mps", "xpu")


def to_tree(generator: Any) -> StateTree:
    """The state of a generator, with its device's kind: each kind has an algorithm of its own."""
    return StateTree({"device": generator.device.type, "state": _leaf(generator.get_state())})


def template(like: Any, saved: StateTree) -> StateTree:
    """What fits `like`: a state of its own size, if it is of the same kind of device.

    Raises:
        MismatchError: it is another kind's, whose algorithm differs.
    """
    found = saved.leaves.get("device")
    if found is not None and found != like.device.type:
        raise MismatchError("a generator of another device was saved", expected=like.device.type, found=found)
    return to_tree(like)


def from_tree(tree: StateTree, like: Any) -> Any:
    """Continue `like` where the saved generator was."""
    state = tree.leaves.get("state")
    if isinstance(state, Tensor):
        like.set_state(build(state))
    return like


def _capture() -> StateTree:
    leaves: dict[str, Leaf] = {"cpu": _leaf(torch.get_rng_state())}
    for kind, index in _devices():
        leaves[f"{kind}/{index}"] = _leaf(_module(kind).get_rng_state(*_place(kind, index)))
    return StateTree(leaves)


def _restore(tree: StateTree) -> None:
    """Set every state whose device is here; a device that is not cannot draw numbers either, which is logged."""
    here = {f"{kind}/{index}": (kind, index) for kind, index in _devices(initialized=False)}
    for name, state in tree.tensors.items():
        if name == "cpu":
            torch.set_rng_state(build(state))
        elif name in here:
            kind, index = here[name]
            _module(kind).set_rng_state(build(state), *_place(kind, index))
        else:
            _LOG.warning("the random state of device %s was saved, but there is no such device here", name)


def _leaf(state: Any) -> Tensor:
    """A leaf that is not live: torch hands out copies of its states, writing to one would change nothing."""
    copy = leaf(state)
    return Tensor(copy.spec, copy.read)


def _devices(*, initialized: bool = True) -> list[tuple[str, int]]:
    """Devices with a random state; asking must not initialise one that the program does not use."""
    found = []
    for kind in _DEVICES:
        module = _module(kind)
        if module is None or (initialized and not getattr(module, "is_initialized", lambda: True)()):
            continue
        found += [(kind, index) for index in range(module.device_count())]
    return found


def _module(kind: str) -> Any:
    return getattr(torch, kind, None)


def _place(kind: str, index: int) -> tuple[int, ...]:
    return () if kind == "mps" else (index,)


RANDOM_STATES = (RandomState("torch", _capture, _restore),)
