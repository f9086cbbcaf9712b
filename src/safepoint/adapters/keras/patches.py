"""Replacing functions of a framework for a while: installed by the first who needs it, taken back by the last.

Invariant: a replacement decides by thread what it does, so overlapping use in several threads is harmless.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Patch(NamedTuple):
    """One function to replace.

    Attributes:
        owner: the module or class that has it.
        name: of the function.
        wrap: the original → its replacement.
    """

    owner: Any
    name: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]


_lock = threading.Lock()
_installed: dict[tuple[int, str], tuple[int, Any]] = {}


@contextmanager
def patched(patches: Sequence[Patch], *, missing: Callable[[str], None]) -> Iterator[None]:
    """Within, the replacements are in place; `missing(name)` is told of an original that does not exist."""
    done: list[Patch] = []
    try:
        for patch in patches:
            if not hasattr(patch.owner, patch.name):
                missing(patch.name)
                continue
            _install(patch)
            done.append(patch)
        yield
    finally:
        for patch in reversed(done):
            _remove(patch)


def _install(patch: Patch) -> None:
    key = (id(patch.owner), patch.name)
    with _lock:
        users, original = _installed.get(key, (0, vars(patch.owner).get(patch.name)))
        if users == 0:
            setattr(patch.owner, patch.name, patch.wrap(getattr(patch.owner, patch.name)))
        _installed[key] = (users + 1, original)


def _remove(patch: Patch) -> None:
    key = (id(patch.owner), patch.name)
    with _lock:
        users, original = _installed.pop(key)
        if users > 1:
            _installed[key] = (users - 1, original)
        elif original is None:
            delattr(patch.owner, patch.name)  # it was inherited
        else:
            setattr(patch.owner, patch.name, original)
