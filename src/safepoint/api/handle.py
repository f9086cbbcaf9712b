"""Handle: one save on its way, with two moments: staged, and durable."""

from __future__ import annotations

import traceback
from concurrent.futures import Future
from typing import final

from safepoint.repository import Snapshot


@final
class Handle:
    """A save that was begun.

    Attributes:
        step: that it saves.
        stall_seconds: how long training stood still for it.
        expected: what policies may know of the snapshot before it is committed.
    """

    def __init__(
        self,
        step: int,
        future: Future[Snapshot | None],
        stall_seconds: float,
        expected: Snapshot,
        copied: Future[None] | None = None,
    ) -> None:
        self.step = step
        self.stall_seconds = stall_seconds
        self.expected = expected
        self._future = future
        self._copied = copied
        self._surfaced = False

    def __repr__(self) -> str:
        return f"Handle(step={self.step}, done={self.done})"

    @property
    def done(self) -> bool:
        """Whether the save is over, one way or the other."""
        return self._future.done()

    def staged(self) -> None:
        """Returns when the live objects may change: everything mutable was copied.

        With `overlap=True` that may be after `save` returned; the optimizers' steps wait for it by themselves.
        """
        if self._copied is not None:
            self._copied.exception()

    def result(self, timeout: float | None = None) -> Snapshot | None:
        """The durable snapshot (None on processes other than the first, which do not commit).

        Raises:
            SafepointError: the save failed; nothing of it was committed.
            TimeoutError: it is not done after `timeout` seconds.
        """
        try:
            return self._future.result(timeout)
        except TimeoutError:
            raise
        except BaseException:
            self._surfaced = True
            raise

    def raise_error(self) -> None:
        """Wait, and raise the save's error unless somebody saw it already."""
        error = self._future.exception()
        if error is not None and not self._surfaced:
            self._surfaced = True
            raise error


def release(error: BaseException) -> None:
    """Let go of what the frames of an error hold: else it would keep a copy of the state alive while anybody has it."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
