"""Staging: copying live state to reused memory, so that training goes on while it is written.

Invariant: one copy of the state at most, kept between saves; once a copy is done nothing in it is live.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from safepoint.repository import Workers
from safepoint.store import aligned_buffer, touch
from safepoint.tree import StateTree, Tensor

_THREADS = 2
_LARGE = 1 << 20  # smaller copies cost less than handing them to a thread
_WORTH_TOUCHING = 64 << 20
_ALIGNMENT = 64
_ROOM = 1 << 20  # for the edges of tensors and for random state: memory a byte too small would be given back untouched

_Copy: TypeAlias = tuple[NDArray[np.uint8], Tensor]


@final
@dataclass(frozen=True, slots=True)
class Staged:
    """A copy of a state.

    Attributes:
        tree: its leaves hold the copy's bytes as soon as `done` is.
        done: when the last byte was copied; what may change before that is what the caller said.
        go_on: begins to copy what may come later; to be called once, when nothing else has to be done in a hurry.
    """

    tree: StateTree
    done: Future[None]
    go_on: Callable[[], None]


@final
class Staging:
    """Memory that takes one copy of a state; grows when the state does."""

    def __init__(self) -> None:
        self._arena = aligned_buffer(0)
        self._touching: threading.Thread | None = None
        self._enough = False  # whether the thread that touches memory should stop

    def reserve(self, num_bytes: int) -> None:
        """Get memory for a state of about this size, beside other work: the first touch takes longer than the copy."""
        num_bytes += num_bytes // 128 + _ROOM
        if num_bytes < _WORTH_TOUCHING or len(self._arena) >= num_bytes:
            return
        self._settle()
        self._arena = aligned_buffer(0)  # the old memory goes before the new comes
        self._arena = arena = aligned_buffer(num_bytes)
        self._enough = False
        # A daemon: it holds nothing that must be finished.
        self._touching = threading.Thread(
            target=touch, args=(arena, lambda: self._enough), name="safepoint-touch", daemon=True
        )
        self._touching.start()

    def copy(self, tree: StateTree, *, hold: bool = False, later: Collection[str] = ()) -> Staged:
        """A copy of `tree` that no training step can change; valid until the next call.

        Args:
            tree: live state.
            hold: keep tensors whose bytes never change as they are instead of copying them.
            later: names whose copy may come after this returns, in the order of the tree: the caller holds off
                whoever would change them until `done`, and calls `go_on`.
        """
        self._settle()
        held = frozenset(name for name, tensor in tree.tensors.items() if hold and tensor.frozen)
        self._make_room(sum(_rounded(t.spec.num_bytes) for name, t in tree.tensors.items() if name not in held))
        offset = 0
        tied: dict[tuple[int, int], Tensor] = {}
        copies: list[_Copy] = []
        delayed: list[_Copy] = []

        def place(name: str, tensor: Tensor) -> Tensor:
            nonlocal offset
            if name in held:
                return tensor
            address = tensor.address
            if address is not None and address in tied:
                return Tensor.of_bytes(tied[address].read(), tensor.spec)
            size = tensor.spec.num_bytes
            target = self._arena[offset : offset + size]
            offset += _rounded(size)
            if size < _LARGE and tensor.transfer is None:
                target[:] = tensor.read()
            else:
                (delayed if name in later else copies).append((target, tensor))
            staged = Tensor.of_bytes(target, tensor.spec)
            if address is not None:
                tied[address] = staged
            return staged

        staged_tree = tree.map_tensors(place)
        # A device begins all its copies now, in the order of its own work; only the waiting may come later.
        later_waits, delayed = _begin(delayed)
        _copy(*_begin(copies))
        done: Future[None] = Future()
        if later_waits or delayed:
            return Staged(staged_tree, done, lambda: _copy_beside(done, later_waits, delayed))
        done.set_result(None)
        return Staged(staged_tree, done, lambda: None)

    def free(self) -> None:
        """Give the memory back; the next copy gets new."""
        self._enough = True
        self._settle()
        self._arena = aligned_buffer(0)

    def _make_room(self, num_bytes: int) -> None:
        if len(self._arena) < num_bytes:
            self._arena = aligned_buffer(0)
            self._arena = aligned_buffer(num_bytes)

    def _settle(self) -> None:
        """Wait for memory that is being touched: two that touch the same pages are no faster than one."""
        touching, self._touching = self._touching, None
        if touching is not None:
            touching.join()


def _begin(copies: Iterable[_Copy]) -> tuple[list[Callable[[], None]], list[_Copy]]:
    """Start what devices copy by themselves; returns what waits for them, and the others."""
    waits, others = [], []
    for target, tensor in copies:
        if tensor.transfer is None:
            others.append((target, tensor))
        else:
            waits.append(tensor.transfer.start(target))
    return waits, others


def _copy(waits: Iterable[Callable[[], None]], copies: Iterable[_Copy]) -> None:
    sources = [(target, tensor.read()) for target, tensor in copies]
    if sources:
        num_bytes = sum(len(source) for _, source in sources)
        with Workers(_THREADS, "safepoint-stage", num_bytes=num_bytes) as pool:
            for future in [pool.submit(np.copyto, target, source) for target, source in sources]:
                future.result()
    for wait in waits:
        wait()


def _copy_beside(done: Future[None], waits: Iterable[Callable[[], None]], copies: Iterable[_Copy]) -> None:
    """Copy in another thread; returns before that begins, which would take the interpreter for 5 ms at a time.

    Where there can be no other thread, it is copied before this returns.
    """
    gate = threading.Event()

    def work() -> None:
        gate.wait()
        _copy_into(done, waits, copies)

    try:
        threading.Thread(target=work, name="safepoint-overlap").start()
    except RuntimeError:
        _copy_into(done, waits, copies)
    gate.set()


def _copy_into(done: Future[None], waits: Iterable[Callable[[], None]], copies: Iterable[_Copy]) -> None:
    try:
        _copy(waits, copies)
    except BaseException as error:  # noqa: BLE001 — it is the save's to raise
        done.set_exception(error)
    else:
        done.set_result(None)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
