"""Signals that ask a job to stop: noted, passed on to whoever handled them before, and given back at the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, final

from safepoint.api.announce import announce
from safepoint.api.arguments import check_patterns
from safepoint.errors import UnsupportedError


@final
class StopSignals:
    """Notes the arrival of signals; the training loop decides when to act on it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.arrived = False
        self._previous: dict[signal.Signals, Any] = {}
        numbers = [_number(name) for name in check_patterns("signals", names)]
        if numbers and threading.current_thread() is not threading.main_thread():
            raise UnsupportedError("signals= works in the main thread only", hint="make the manager there")
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        self.watching = bool(numbers)

    def restore(self) -> None:
        """Give the handlers back, unless somebody else took over since."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows it nowhere else; the handler only takes a note
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.arrived
        self.arrived = True
        announce(f"{signal.Signals(number).name}: finishing this step, then saving")
        previous = self._previous.get(signal.Signals(number))
        # Python's own handler of Ctrl-C would break off the step that is to be finished: the second one may.
        if callable(previous) and (again or previous is not signal.default_int_handler):
            previous(number, frame)


def _number(name: str) -> signal.Signals:
    number = getattr(signal, name, None)
    if not isinstance(number, signal.Signals) or number in {signal.SIGKILL, signal.SIGSTOP}:
        raise UnsupportedError(f"signals={name!r}", expected="names of signals that can be handled, such as 'SIGTERM'")
    return number
