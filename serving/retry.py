"""When to ask again: one deadline over all attempts, full jitter, transient statuses only.

Full jitter is the variant of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
that finishes contended work soonest: a pause is uniform between 0 and the doubled bound.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from model.errors import InvalidInput
from serving.errors import TRANSIENT, CallFailed

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Retries:
    """How often to ask, and how far apart.

    Attributes:
      attempts: calls made at most, at least 1.
      base_s: upper bound of the first pause; it doubles with each.
      cap_s: upper bound of any pause.
    """

    attempts: int = 5
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.attempts < 1 or self.base_s < 0 or self.cap_s < 0:
            raise InvalidInput(f"{self}: expected attempts ≥ 1 and pauses of 0 s or more")

    def bound_s(self, attempt: int) -> float:
        """The longest pause after the given attempt, counted from 0."""
        return float(min(self.cap_s, self.base_s * 2**attempt))


@dataclass(frozen=True)
class Clock:
    """Time and chance, replaceable in tests.

    Attributes:
      now_s: monotonic seconds.
      sleep: waits so many seconds.
      uniform: a number in [0, 1).
    """

    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[], float] = random.random


def call(
    attempt: Callable[[float], _Answer], *, timeout_s: float, retries: Retries, clock: Clock
) -> _Answer:
    """Calls until there is an answer.

    Args:
      attempt: makes one call within the seconds given to it, or raises CallFailed.
      timeout_s: seconds for all attempts and pauses together.
      retries: how often and how far apart.
      clock: time and chance.

    Raises:
      CallFailed: that of the last attempt; it is not transient, or no attempt or time is left.
    """
    deadline_s = clock.now_s() + timeout_s
    for made in range(retries.attempts - 1):
        try:
            return attempt(deadline_s - clock.now_s())
        except CallFailed as failed:
            pause_s = clock.uniform() * retries.bound_s(made)
            if failed.code not in TRANSIENT or clock.now_s() + pause_s >= deadline_s:
                raise
        clock.sleep(pause_s)
    return attempt(deadline_s - clock.now_s())
