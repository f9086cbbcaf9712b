"""Overlap: copying beside the next forward and backward pass what only an optimizer's step changes.

Invariant: a copy that may be torn is never committed. The optimizers' steps wait for the copy; the first saves copy at
once and compare again just before the step, so a run that changes weights elsewhere is found out, and overlap is off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, final

from safepoint.adapters import find
from safepoint.api.announce import announce
from safepoint.api.staging import Staged
from safepoint.codec import checksum
from safepoint.errors import UnsupportedError
from safepoint.tree import StateTree, Tensor

_TRIALS = 2


@final
class Overlap:
    """What may be copied late, and the steps that wait for it."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Watch the optimizers among tracked objects.

        Raises:
            UnsupportedError: there is none whose steps can be held off.
        """
        self._optimizers: list[tuple[Any, Any]] = []
        self._removers: list[Callable[[], None]] = []
        self._trials = _TRIALS
        self._is_on = True
        self._mutex = threading.Lock()
        self._staged: Staged | None = None
        self._live: dict[str, Tensor] = {}
        self._versions: dict[str, Callable[[], bool]] = {}
        for obj in objects.values():
            adapter: Any = find(obj)
            watch = getattr(adapter, "before_step", None)
            remove = None if watch is None else watch(obj, self._before_step)
            if remove is not None:
                self._optimizers.append((adapter, obj))
                self._removers.append(remove)
        if not self._optimizers:
            raise UnsupportedError(
                "overlap=True has nothing to overlap with",
                expected="a tracked torch.optim.Optimizer, whose step can wait for the copy",
                hint="leave overlap= out: saves are in the background anyway",
            )

    def later(self, tree: StateTree) -> frozenset[str]:
        """Names of a captured tree that only the steps of the watched optimizers change."""
        if not self._is_on:
            return frozenset()
        self._release()
        stepped: dict[tuple[int, int], Callable[[], bool]] = {}
        for adapter, optimizer in self._optimizers:
            stepped.update(adapter.stepped(optimizer))
        owned: dict[str, Tensor] = {}
        versions: dict[str, Callable[[], bool]] = {}
        for name, tensor in tree.tensors.items():
            version = stepped.get(address) if (address := tensor.address) else None
            if version is not None:
                owned[name], versions[name] = tensor, version
        with self._mutex:
            self._live, self._versions = owned, versions
        return frozenset() if self._trials else frozenset(owned)

    def begin(self, staged: Staged) -> Staged:
        """A staged copy whose `done` also says that nothing changed under it."""
        if not self._is_on:
            return staged
        checked: Future[None] = Future()
        watched = Staged(staged.tree, checked, staged.go_on)
        with self._mutex:
            self._staged, changed = watched, dict(self._versions)

        def check(copied: Future[None]) -> None:
            error = copied.exception()
            torn = None if error is not None else next((name for name, moved in changed.items() if moved()), None)
            if torn is not None:
                self._turn_off(torn)
                error = UnsupportedError(
                    f"{torn} changed while it was copied, outside its optimizer's step; nothing was committed",
                    hint="overlap=False copies everything before save() returns; it is used from now on",
                )
            checked.set_exception(error) if error is not None else checked.set_result(None)

        staged.done.add_done_callback(check)
        return watched

    def close(self) -> None:
        """Stop watching."""
        self._release()
        for remove in self._removers:
            remove()
        self._removers.clear()

    def _before_step(self) -> None:
        """Hold a step off until the copy is done; in the first saves, see that nothing else changed meanwhile."""
        with self._mutex:
            staged, live, trial = self._staged, self._live, self._trials > 0
            self._staged, self._live = None, {}
        if staged is None:
            return
        staged.done.exception()  # waits; the save itself says what went wrong
        if trial and self._is_on:
            self._trials -= 1
            copies = staged.tree.tensors
            moved = next((n for n, t in live.items() if checksum(t.read()) != checksum(copies[n].read())), None)
            if moved is not None:
                self._turn_off(moved)

    def _turn_off(self, name: str) -> None:
        self._is_on = False
        announce(
            f"{name} changes outside its optimizer's step, so nothing is copied beside training from now on "
            "(overlap=True asks that parameters change in step() only)",
            warning=True,
        )

    def _release(self) -> None:
        """A copy on its way must end before its memory is used again."""
        with self._mutex:
            staged, self._staged, self._live = self._staged, None, {}
        if staged is not None:
            staged.done.exception()
