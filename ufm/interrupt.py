"""Ctrl-C and SIGTERM set a flag; the work stops at the next batch or chunk, saves, and says how to resume."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised at a safe point after a signal, when everything finished is saved. Exit status 128 + signum.

    Like KeyboardInterrupt no Exception: what catches the errors of one cell must not catch this.
    """

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
def stop_on_signals(grace: float | None = None) -> Iterator[Stop]:
    """Yield a Stop that turns true on the first SIGINT or SIGTERM; the second signal ends the process at once.

    With `grace`, work that has not come to its safe point so many seconds after the first signal is broken off by
    Interrupted: for work whose finished parts are on disk already.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signal handlers can be set in the main thread only
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.signum:
            os._exit(128 + signum)
        stop.signum = signum
        if grace is not None:
            signal.setitimer(signal.ITIMER_REAL, grace)

    def break_off(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(stop.signum)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    if grace is not None:
        previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, break_off)
    try:
        yield stop
    finally:
        if grace is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
