"""Stopping a long run from outside: SIGTERM asks, the run ends where it can go on later."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody has asked."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def make(self) -> None:
        """Ask."""
        self._event.set()


@contextmanager
def on_sigterm() -> Iterator[StopRequest]:
    """Turn the first SIGTERM into a request; the second ends the process as ever.

    Outside of the main thread, where no signal arrives, nobody can ask.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.make()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
