"""When to ask again: one deadline over all attempts, full jitter, transient statuses only.

Full jitter is the variant of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
that finishes contended work soonest: a pause is uniform between 0 and the doubled bound.

An attempt gets half of the time that is left, and all of it when that is an eighth of the deadline
or less. With all of it from the beginning, one server that hangs would use up the deadline while
its neighbour is idle; with equal parts, a server that is merely slow would get a few seconds. So
an answer that takes up to half of the deadline arrives if the first attempt is not refused, and no
attempt gets less than a sixteenth.

The deadline is the bound: a server whose queue is full, or which is being restarted, refuses at
once, and is asked for as long as there is time.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from model.errors import InvalidInput
from serving.errors import DEADLINE_EXCEEDED, TRANSIENT, CallFailed

# What is left of a deadline is not halved below this part of it: an attempt at 32 images would be
# work for the server that nobody waits for.
_INDIVISIBLE = 1 / 8
# Nor below this: half of it would be too short for an answer from another continent.
_INDIVISIBLE_S = 1.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Retries:
    """How often to ask, and how far apart.

    Attributes:
      attempts: calls made at most, at least 1; None for as many as the deadline allows.
      base_s: upper bound of the first pause; it doubles with each.
      cap_s: upper bound of any pause; a full queue takes up to half a minute.
    """

    attempts: int | None = None
    base_s: float = 0.25
    cap_s: float = 10.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if (self.attempts is not None and self.attempts < 1) or self.base_s < 0 or self.cap_s < 0:
            raise InvalidInput(f"{self}: expected attempts ≥ 1 and pauses of 0 s or more")

    def bound_s(self, attempt: int) -> float:
        """The longest pause after the given attempt, counted from 0."""
        # A float has no power of two beyond 1023; the cap is reached long before.
        return float(min(self.cap_s, self.base_s * 2 ** min(attempt, 60)))

    def is_last(self, attempt: int) -> bool:
        """True for the last attempt, counted from 0."""
        return self.attempts is not None and attempt + 1 >= self.attempts


# For a server that is being started: it comes when it comes, and then is asked within a second.
STARTING = Retries(base_s=0.1, cap_s=1.0)
# For a model in this process, which has no deadline: memory that is short may stay so for ever.
IN_PROCESS = Retries(attempts=5, base_s=0.1)


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
      timeout_s: seconds for all attempts and pauses together; no end of them needs one of attempts.
      retries: how often and how far apart.
      clock: time and chance.

    Raises:
      CallFailed: that of the last attempt; it is not transient, or no attempt or time is left.
      InvalidInput: neither time nor attempts end.
    """
    if math.isinf(timeout_s) and retries.attempts is None:
        raise InvalidInput(f"{retries} without a deadline: expected a number of attempts")
    deadline_s = clock.now_s() + timeout_s
    indivisible_s = max(_INDIVISIBLE_S, timeout_s * _INDIVISIBLE)
    failure = CallFailed(DEADLINE_EXCEEDED, "no time was left to ask")
    made = 0
    while True:
        left_s = deadline_s - clock.now_s()
        # A pause may last longer than it was told to.
        if left_s <= 0:
            raise failure
        last = retries.is_last(made)
        try:
            return attempt(left_s if last or left_s <= indivisible_s else left_s / 2)
        except CallFailed as failed:
            pause_s = clock.uniform() * retries.bound_s(made)
            left_s = deadline_s - clock.now_s()
            # A long pause does not take the place of the attempt that would get all that is left.
            if left_s > indivisible_s:
                pause_s = min(pause_s, left_s - indivisible_s)
            if last or failed.code not in TRANSIENT or pause_s >= left_s:
                raise
            failure = failed
        clock.sleep(pause_s)
        made += 1
