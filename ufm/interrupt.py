"""Ctrl-C and SIGTERM set a flag; the work stops at the next batch or chunk, saves, and says how to resume."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Raised at a safe point after a signal, when everything finished is saved. Exit status 128 + signum."""

    def __init__(self, signum: int, resume: str = "") -> None:
        super().__init__(resume)
        self.signum, self.resume = signum, resume


class Stop:
    """The flag: `signum` is 0 until a signal arrives."""

    def __init__(self) -> None:
        self.signum = 0

    def __bool__(self) -> bool:
        return self.signum != 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield a Stop that turns true on the first SIGINT or SIGTERM; the second signal ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signal handlers can be set in the main thread only
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.signum:
            os._exit(128 + signum)
        stop.signum = signum

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
