"""Turns at a host: how many at once, how often, and nobody else's business."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.errors import ItemFailure, Reason
from pipelines import host_turns
from pipelines.host_turns import HostTurns
from serving.retry import Clock
from tests.fetch_fixtures import BODY, FakeClock, Handler, fetching, reason, serving

PATIENCE_S = 20


def test_only_so_many_requests_are_at_one_host_at_once() -> None:
    """The third begins when one of the two has ended, and not before."""
    turns = HostTurns(2, 0, Clock(), PATIENCE_S)
    began: list[int] = []
    two, leave = threading.Semaphore(0), threading.Semaphore(0)

    def visit(number: int) -> None:
        with turns.turn("a.test"):
            began.append(number)
            two.release()
            assert leave.acquire(timeout=PATIENCE_S)

    with ThreadPoolExecutor(3) as pool:
        visits = [pool.submit(visit, number) for number in range(3)]
        for _ in range(2):
            assert two.acquire(timeout=PATIENCE_S)
        # Another host's turn comes while the third waits.
        with turns.turn("b.test"):
            assert len(began) == 2
        leave.release()
        assert two.acquire(timeout=PATIENCE_S)
        leave.release(2)
        for visited in visits:
            visited.result(PATIENCE_S)
    assert sorted(began) == [0, 1, 2]


def test_a_turn_ends_with_its_block_whatever_happens_there() -> None:
    turns = HostTurns(1, 0, Clock(), max_wait_s=0.1)
    for _ in range(3):
        with pytest.raises(KeyError), turns.turn("a.test"):
            raise KeyError


def test_turns_at_one_host_come_at_its_rate_and_others_at_once() -> None:
    clock = FakeClock()
    turns = HostTurns(9, 4, clock.clock)
    times = []
    for _ in range(3):
        with turns.turn("a.test"):
            times.append(clock.time_s)
        with turns.turn(f"{len(times)}.test"):
            assert clock.time_s == times[-1]
    assert times == [0.0, 0.25, 0.5]


def test_a_host_on_hold_is_left_alone() -> None:
    clock = FakeClock()
    turns = HostTurns(1, 0, clock.clock)
    turns.hold("a.test", 5)
    turns.hold("a.test", 3)
    with turns.turn("b.test"):
        assert clock.time_s == 0
    with turns.turn("a.test"):
        assert clock.time_s == 5


def test_the_wait_for_a_turn_is_bounded() -> None:
    clock = FakeClock()
    turns = HostTurns(1, 0.1, clock.clock, max_wait_s=15)
    for _ in range(2):
        with turns.turn("a.test"):
            pass
    turns.hold("a.test", 16)
    with pytest.raises(ItemFailure, match=r"no turn at a\.test within 15 s") as caught:
        turns.turn("a.test").__enter__()
    assert caught.value.reason == Reason.TIMEOUT
    # One that holds its turn for longer than others wait.
    turns = HostTurns(1, 0, Clock(), max_wait_s=0.01)
    with turns.turn("a.test"), pytest.raises(ItemFailure, match="no turn"), turns.turn("a.test"):
        pass


def test_hosts_that_nobody_waits_for_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_turns, "_MANY_HOSTS", 10)
    clock = FakeClock()
    turns = HostTurns(1, 0, clock.clock)
    turns.hold("held.test", 5)
    with turns.turn("used.test"):
        for number in range(100):
            with turns.turn(f"{number}.test"):
                pass
        assert len(turns._hosts) <= 11
        assert {"held.test", "used.test"} <= set(turns._hosts)


def test_waiting_for_a_turn_costs_a_url_nothing_of_its_deadline() -> None:
    """Ten seconds between two requests, and five for each URL."""
    clock = FakeClock()
    with serving() as server, fetching(clock, host_rate=0.1, url_timeout_s=5) as fetcher:
        for _ in range(3):
            fetcher.fetch(server.url("/image"))
        # robots.txt and three images.
        assert clock.time_s == 30


def test_what_cannot_be_reached_at_all_waits_for_no_turn() -> None:
    clock = FakeClock()
    settings = {"allow_private": (), "ignore_robots": True, "host_rate": 0.1}
    with fetching(clock, **settings) as fetcher:
        for _ in range(3):
            assert reason(fetcher, "http://127.0.0.1/image") == Reason.REFUSED_ADDRESS
    assert clock.slept == []


def test_an_image_of_a_free_host_does_not_wait_for_one_of_a_busy_host() -> None:
    busy, go = threading.Event(), threading.Event()

    def hang(handler: Handler) -> None:
        busy.set()
        go.wait(PATIENCE_S)
        handler.reply(200, BODY)

    with (
        serving("127.0.0.1") as slow,
        serving("127.0.0.2") as free,
        fetching(host_connections=1, url_timeout_s=PATIENCE_S) as fetcher,
        ThreadPoolExecutor(4) as pool,
    ):
        slow.answers["/hang"] = hang
        waiting = [pool.submit(fetcher.fetch, slow.url("/hang")) for _ in range(3)]
        assert busy.wait(PATIENCE_S)
        assert pool.submit(fetcher.fetch, free.url("/image")).result(PATIENCE_S)
        assert slow.paths == ["/hang"]
        go.set()
        assert [image.result(PATIENCE_S) for image in waiting] == [BODY] * 3
