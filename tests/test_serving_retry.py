"""One deadline over all attempts: how it is split, and when nothing is left of it."""

import contextlib
import itertools
import math

import pytest

from model.errors import InvalidInput
from serving import retry
from serving.errors import CallFailed
from serving.retry import IN_PROCESS, STARTING, Clock, Retries
from tests.serving_fixtures import FakeTime


class Callee:
    """Fails as told; each call takes its part of the time it was given.

    Attributes:
      given: seconds of each attempt.
      began: when each began.
    """

    def __init__(self, time: FakeTime, failures: list[str], used: float) -> None:
        self._time, self._failures, self._used = time, list(failures), used
        self.given: list[float] = []
        self.began: list[float] = []

    def __call__(self, timeout_s: float) -> str:
        self.given.append(timeout_s)
        self.began.append(self._time.now_s)
        if not self._failures:
            return "answer"
        self._time.now_s += timeout_s * self._used
        raise CallFailed(self._failures.pop(0), "failed")


def clock_of(time: FakeTime, chance: float = 0.0) -> Clock:
    return Clock(lambda: time.now_s, time.sleep, lambda: chance)


@pytest.mark.parametrize(
    ("retries", "timeout_s", "given"),
    [
        # The last eighth is not halved, nor is the last second.
        (Retries(), 64, [32, 16, 8, 8]),
        (Retries(), 4, [2, 1, 1]),
        (Retries(attempts=2), 64, [32, 32]),
    ],
)
def test_each_attempt_gets_half_of_what_is_left_and_the_last_gets_all(
    retries: Retries, timeout_s: float, given: list[float]
) -> None:
    time = FakeTime()
    hung = Callee(time, ["DEADLINE_EXCEEDED"] * 99, used=1.0)
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        retry.call(hung, timeout_s=timeout_s, retries=retries, clock=clock_of(time))
    assert hung.given == given
    assert time.now_s == sum(given) == timeout_s


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.999])
def test_a_server_that_refuses_at_once_is_asked_until_the_deadline(chance: float) -> None:
    """A full queue takes half a minute, and so does a server that is restarted."""
    time = FakeTime()
    refuses = Callee(time, ["RESOURCE_EXHAUSTED"] * 1000, used=0.0)
    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        retry.call(refuses, timeout_s=120, retries=Retries(), clock=clock_of(time, chance))
    assert refuses.began[-1] >= 120 - 120 / 8
    # Often at first, and never so rarely that a place in the queue is missed.
    assert sum(began < 10 for began in refuses.began) >= 5
    pauses = [b - a for a, b in itertools.pairwise(refuses.began)]
    assert max(pauses) <= 10
    # No attempt is so short that a batch has no chance, if there is time.
    for began, given in zip(refuses.began, refuses.given, strict=True):
        assert given >= min(120 / 16, 120 - began)


def test_a_long_pause_leaves_the_last_attempt_its_time() -> None:
    time = FakeTime()
    refuses = Callee(time, ["UNAVAILABLE"] * 9, used=0.0)
    with pytest.raises(CallFailed):
        retry.call(refuses, timeout_s=8, retries=Retries(base_s=100), clock=clock_of(time, 0.5))
    assert refuses.began == [0, 5, 7]
    assert refuses.given == [4, 1.5, 1]


def test_an_attempt_that_may_be_the_only_one_gets_all() -> None:
    only = Callee(FakeTime(), [], used=1.0)
    retry.call(only, timeout_s=64, retries=Retries(attempts=1), clock=clock_of(FakeTime()))
    assert only.given == [64]


def test_a_hung_server_leaves_time_for_a_good_one() -> None:
    time = FakeTime()
    first_hangs = Callee(time, ["DEADLINE_EXCEEDED"], used=1.0)
    answer = retry.call(first_hangs, timeout_s=10, retries=Retries(), clock=clock_of(time))
    assert answer == "answer"
    assert first_hangs.given == [5, 2.5]
    assert time.now_s < 10


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("used", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timeout_s", [0.01, 1.0, 1.9, 7.0, 60.0])
@pytest.mark.parametrize("retries", [Retries(attempts=9), STARTING, Retries()], ids=str)
def test_attempts_and_pauses_fill_the_deadline_and_never_pass_it(
    retries: Retries, timeout_s: float, used: float, chance: float
) -> None:
    time = FakeTime()
    # A call that fails at once and a pause of nothing take no time: some end of their own.
    failures = ["UNAVAILABLE"] * 1000
    callee = Callee(time, failures, used)
    with contextlib.suppress(CallFailed):
        retry.call(callee, timeout_s=timeout_s, retries=retries, clock=clock_of(time, chance))
    assert min(callee.given) > 0
    for began, given in zip(callee.began, callee.given, strict=True):
        assert began + given <= timeout_s * (1 + 1e-9)
    assert time.now_s <= timeout_s * (1 + 1e-9)
    if retries.attempts is None and used + chance > 0:
        # It gives up only where the next pause would end behind it, near its end.
        assert time.now_s >= timeout_s - max(1.0, timeout_s / 8)
    if used == 1.0:
        assert len(callee.given) < 10


def test_a_pause_that_takes_too_long_leaves_no_attempt_without_time() -> None:
    time = FakeTime()
    callee = Callee(time, ["UNAVAILABLE"] * 9, used=0.0)
    clock = Clock(lambda: time.now_s, lambda _: time.sleep(100), lambda: 0.5)
    with pytest.raises(CallFailed, match="UNAVAILABLE: failed"):
        retry.call(callee, timeout_s=10, retries=Retries(), clock=clock)
    assert callee.given == [5]


def test_without_time_nobody_is_asked() -> None:
    callee = Callee(FakeTime(), [], used=0.0)
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED: no time was left to ask"):
        retry.call(callee, timeout_s=-1, retries=Retries(), clock=clock_of(FakeTime()))
    assert callee.given == []


def test_a_model_in_this_process_has_no_deadline() -> None:
    callee = Callee(FakeTime(), ["RESOURCE_EXHAUSTED"], used=0.0)
    retry.call(callee, timeout_s=math.inf, retries=IN_PROCESS, clock=clock_of(FakeTime()))
    assert callee.given == [math.inf, math.inf]


def test_something_ends_the_attempts() -> None:
    """Memory that is short is RESOURCE_EXHAUSTED, too."""
    callee = Callee(FakeTime(), ["RESOURCE_EXHAUSTED"] * 99, used=0.0)
    with pytest.raises(CallFailed):
        retry.call(callee, timeout_s=math.inf, retries=IN_PROCESS, clock=clock_of(FakeTime()))
    assert len(callee.given) == 5
    with pytest.raises(InvalidInput, match="without a deadline: expected a number of attempts"):
        retry.call(callee, timeout_s=math.inf, retries=Retries(), clock=clock_of(FakeTime()))
    assert len(callee.given) == 5


def test_pauses_are_bounded_however_many_there_were() -> None:
    assert STARTING.bound_s(10_000) == STARTING.cap_s
    with pytest.raises(InvalidInput, match="attempts ≥ 1"):
        Retries(attempts=0)
