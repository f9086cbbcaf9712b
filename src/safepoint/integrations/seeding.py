"""Random numbers of a data pipeline as a function of (seed, epoch, batch), apart from the program's own.

Invariant: the program's global generators are after each step of a pipeline what they were before it.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits from other numbers; the same on every machine and version, and unlike its neighbours."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and, where the program uses it, torch."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002  # these are what datasets draw from
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(seed)


def isolated(start: Callable[[], Iterator[Any]], seed: int) -> Iterator[Any]:
    """The items of `start()`, whose draws from the global generators come from `seed` and leave no trace."""
    own = _Generators(seed)
    own.enter()
    try:
        items = iter(start())
    finally:
        own.leave()
    while True:
        own.enter()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            own.leave()
        yield item


@final
class _Generators:
    """A second state for the global generators, exchanged with the program's while a pipeline runs."""

    def __init__(self, seed: int) -> None:
        self._seed: int | None = seed
        self._own: Any = None
        self._program: Any = None

    def enter(self) -> None:
        self._program = _states()
        if self._seed is not None:
            seed_everything(self._seed)
            self._seed = None
        else:
            _set_states(self._own)

    def leave(self) -> None:
        self._own = _states()
        _set_states(self._program)


def _states() -> tuple[Any, Any, Any]:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(legacy=False), torch and torch.default_generator.get_state()  # noqa: NPY002


def _set_states(states: tuple[Any, Any, Any]) -> None:
    python, numpy, torch_state = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    if torch_state is not None:
        sys.modules["torch"].default_generator.set_state(torch_state)
