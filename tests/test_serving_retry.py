"""One deadline over all attempts: how it is split, and when nothing is left of it."""

import contextlib
import math

import pytest

from model.errors import InvalidInput
from serving import retry
from serving.errors import CallFailed
from serving.retry import UNTIL_DEADLINE, Clock, Retries
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


def test_each_attempt_gets_half_of_what_is_left_and_the_last_gets_all() -> None:
    time = FakeTime()
    hung = Callee(time, ["DEADLINE_EXCEEDED"] * 5, used=1.0)
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        retry.call(hung, timeout_s=64, retries=Retries(attempts=5), clock=clock_of(time))
    assert hung.given == [32, 16, 8, 4, 4]
    assert time.now_s == sum(hung.given) == 64


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
@pytest.mark.parametrize("retries", [Retries(attempts=9), UNTIL_DEADLINE], ids=["9", "all"])
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
    if retries is UNTIL_DEADLINE and used + chance > 0:
        # It gives up only where the next pause, of a second at most, would end behind it.
        assert time.now_s >= timeout_s - retries.cap_s
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
    retry.call(callee, timeout_s=math.inf, retries=Retries(), clock=clock_of(FakeTime()))
    assert callee.given == [math.inf, math.inf]


def test_pauses_are_bounded_however_many_there_were() -> None:
    assert UNTIL_DEADLINE.bound_s(10_000) == UNTIL_DEADLINE.cap_s
    with pytest.raises(InvalidInput, match="attempts ≥ 1"):
        Retries(attempts=0)
