"""Progress of long work: one live line on a terminal, a plain line every 30 s elsewhere."""

import sys
import threading
import time
from typing import TextIO

PLAIN_INTERVAL_S = 30.0
LIVE_INTERVAL_S = 0.5


class Progress:
    """Counts finished units and says so on stderr; safe to call from several threads.

    Args:
      label: what is being done, e.g. "preprocess".
      total: units in all, or None when unknown.
      unit: what is counted, e.g. "images".
      stream: where lines go; stderr by default.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, stream: TextIO | None = None
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._lock = threading.Lock()
        self._done = 0
        self._started = self._printed = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units; `note` (a loss, failures so far) ends the line."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
            if now - self._printed < interval:
                return
            self._printed = now
            self._print(now, note)

    def close(self) -> None:
        """End the live line, so that what follows starts on a line of its own."""
        with self._lock:
            if self._live and self._printed > self._started:
                self._print(time.monotonic(), "")
                self._stream.write("\n")
                self._stream.flush()

    def _print(self, now: float, note: str) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = self._done / elapsed
        line = f"{self._label}: {self._done}"
        if self._total is not None:
            line += f" of {self._total}"
        line += f" {self._unit}, {rate:.1f} {self._unit}/s"
        if self._total is not None and rate > 0:
            line += f", {max(self._total - self._done, 0) / rate:.0f} s left"
        if note:
            line += f", {note}"
        self._stream.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self._stream.flush()
