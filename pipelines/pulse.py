"""When a process looks after its lease, and when it beats for it, by its own clock."""

import threading
from time import monotonic

BEAT_EVERY_S = 20.0
# A worker beats only when nobody else has done so for this long: many workers of a cluster must
# not write one object all the time.
_WORKER_BEATS_AFTER_S = 2 * BEAT_EVERY_S


class Pulse:
    """What one process knows of a lease; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = monotonic()
        self._next_look = self._changed + BEAT_EVERY_S
        self._written = 0.0

    def is_due(self) -> bool:
        """Whether it is time to look; then no other thread of this process need do so."""
        now = monotonic()
        if now < self._next_look:
            return False
        with self._lock:
            due = now >= self._next_look
            self._next_look = now + BEAT_EVERY_S
        return due

    def is_silent(self, written: float) -> bool:
        """Whether the lease's file, written at that time, has not changed for long."""
        now = monotonic()
        with self._lock:
            if written != self._written:
                self._written, self._changed = written, now
            return now - self._changed >= _WORKER_BEATS_AFTER_S

    def look_at_once(self) -> None:
        """The lease is lost, as the next item shall see."""
        self._next_look = 0.0


_PULSES: dict[str, Pulse] = {}


def pulse_of(token: str) -> Pulse:
    """This process's, for one lease."""
    # Asked for at every item, so a new one is made only where there is none.
    return _PULSES.get(token) or _PULSES.setdefault(token, Pulse())


def forget_pulse(token: str) -> None:
    """The lease has ended."""
    _PULSES.pop(token, None)
