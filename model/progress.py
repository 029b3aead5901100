"""Progress of long work: one live line on a terminal, a plain line every 30 s elsewhere."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

PLAIN_INTERVAL_S = 30.0
LIVE_INTERVAL_S = 0.5
_MINUTE_S, _HOUR_S = 60.0, 3600.0


class Progress:
    """Counts finished units and says so on stderr; safe to call from several threads.

    Args:
      label: what is being done, e.g. "preprocess".
      total: units in all, or None when unknown.
      unit: what is counted, e.g. "images".
      stream: where lines go; stderr by default.
      done: units that an earlier run finished; they count as done, not into rate and time left.
      clock: seconds, as time.monotonic.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        stream: TextIO | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._lock = threading.Lock()
        self._clock = clock
        self._done = self._before = done
        self._note = ""
        self._started = self._printed = clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units; `note` (a loss, failures so far) ends the line."""
        with self._lock:
            self._show(self._done + count, note)

    def show(self, done: int, note: str = "") -> None:
        """`done` units are finished by now, those of an earlier run included."""
        with self._lock:
            self._show(done, note)

    def close(self, done: int | None = None, note: str = "") -> None:
        """End the live line, so that what follows starts on a line of its own."""
        with self._lock:
            if self._live and self._printed > self._started:
                self._done, self._note = self._done if done is None else done, note
                self._print(self._clock())
                self._stream.write("\n")
                self._stream.flush()

    def _show(self, done: int, note: str) -> None:
        self._done, self._note = done, note
        now = self._clock()
        interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
        if now - self._printed >= interval:
            self._printed = now
            self._print(now)

    def _print(self, now: float) -> None:
        rate = max(self._done - self._before, 0) / max(now - self._started, 1e-9)
        line = f"{self._label}: {self._done}"
        if self._total is not None:
            line += f" of {self._total}"
        line += f" {self._unit}, {rate:.1f} {self._unit}/s"
        if self._total is not None and rate > 0:
            line += f", {_duration(max(self._total - self._done, 0) / rate)} left"
        if self._note:
            line += f", {self._note}"
        self._stream.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"
