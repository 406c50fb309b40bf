"""When a training run has to leave before its end: its time budget is spent, or it is asked to by a signal.

A cluster ends a job (preemption, time limit, scancel) by SIGTERM and, some seconds later, SIGKILL; a person by Ctrl-C.
Between the two there is time for one checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether to leave now.

    Args:
        deadline: of time.monotonic(); None for no limit.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._signal: str | None = None
        self._owner = os.getpid()

    def reason(self) -> str | None:
        """Why the run should leave after this update, or None if it should go on."""
        if self._signal:
            return self._signal
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "its time budget"
        return None

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests to leave; a second Ctrl-C interrupts at once."""
        before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader process, forked with this handler: it has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self._signal:
            signal.default_int_handler(number, frame)
        # A second SIGTERM is often the same one, sent by the workflow's driver beside the cluster: it changes nothing.
        self._signal = signal.Signals(number).name
