"""One deadline over all that a URL needs, which stands still while it waits for its turn."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.retry import Clock


class Budget:
    """The seconds that are left for a URL."""

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        """Begins to count."""
        self.timeout_s, self._now_s = timeout_s, clock.now_s
        self._ends_s = clock.now_s() + timeout_s

    def left_s(self) -> float:
        """Seconds; none or less when the time is over."""
        return self._ends_s - self._now_s()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What passes in the block costs nothing."""
        began_s = self._now_s()
        try:
            yield
        finally:
            self._ends_s += self._now_s() - began_s
