"""When a URL is asked for again, after which pause, and when it is given up."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from model.errors import ItemFailure, Reason
from pipelines import resolver
from pipelines.http_answers import retry_after_s
from tests.fetch_fixtures import (
    BODY,
    FakeClock,
    LoopbackServer,
    answered,
    fetching,
    one_after_another,
    reason,
    serving,
)


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_lasts_as_long_as_the_server_asks(status: int, server: LoopbackServer) -> None:
    server.answers["/"] = one_after_another(
        answered(status, Retry_After="7"), server.answers["/image"]
    )
    clock = FakeClock()
    with fetching(clock) as fetcher:
        assert fetcher.fetch(server.url("/")) == BODY
    assert clock.slept == [7.0]
    assert server.paths == ["/", "/"]


def test_a_pause_beyond_the_deadline_is_a_failure_at_once(server: LoopbackServer) -> None:
    server.answers["/"] = answered(429, Retry_After="11")
    clock = FakeClock()
    with fetching(clock, url_timeout_s=10) as fetcher, pytest.raises(ItemFailure) as caught:
        fetcher.fetch(server.url("/"))
    assert caught.value.reason == Reason.HTTP_429
    assert "Retry-After: 11 s" in caught.value.message
    assert clock.slept == []
    assert server.paths == ["/"]


def test_pauses_share_one_deadline(server: LoopbackServer) -> None:
    server.answers["/"] = answered(429, Retry_After="6")
    clock = FakeClock()
    with fetching(clock, url_timeout_s=10) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.HTTP_429
    assert clock.slept == [6.0]
    assert server.paths == ["/", "/"]


def test_a_host_that_asks_for_a_pause_is_left_alone_by_all(server: LoopbackServer) -> None:
    server.answers["/"] = answered(429, Retry_After="6")
    clock = FakeClock()
    with fetching(clock, url_retries=0) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.HTTP_429
        assert fetcher.fetch(server.url("/image")) == BODY
    assert clock.slept == [6.0]


@pytest.mark.parametrize(("asked", "held"), [("120", 120.0), ("9" * 400, 600.0)])
def test_a_host_is_left_alone_beyond_the_deadline_of_the_image_that_was_told(
    asked: str, held: float, server: LoopbackServer
) -> None:
    server.answers["/"] = answered(429, Retry_After=asked)
    clock = FakeClock()
    with fetching(clock, url_timeout_s=10) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.HTTP_429
        assert clock.slept == []
        assert fetcher.fetch(server.url("/image")) == BODY
    assert clock.slept == [held]


def test_a_name_server_that_is_out_of_order_is_asked_again(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Exception] = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure")] * 2
    look_up = socket.getaddrinfo

    def answer(*where: Any, **options: Any) -> Any:
        if answers:
            raise answers.pop()
        return look_up(*where, **options)

    monkeypatch.setattr(resolver.socket, "getaddrinfo", answer)
    with fetching(FakeClock(), url_retries=2) as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY
    assert answers == []


def test_pauses_are_uniform_below_a_bound_that_doubles(server: LoopbackServer) -> None:
    server.answers["/"] = answered(500)
    clock = FakeClock(share=0.5)
    with fetching(clock, url_retries=3) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.HTTP_5XX
    assert clock.slept == [0.125, 0.25, 0.5]
    assert len(server.asked) == 4


def test_without_retries_a_url_is_asked_for_once(server: LoopbackServer) -> None:
    server.answers["/"] = answered(500)
    with fetching(FakeClock(), url_retries=0) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.HTTP_5XX
    assert server.paths == ["/"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 0.0),
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 3 "}, 3.0),
        ({"Retry-After": "9" * 5_000}, float("inf")),
        ({"Retry-After": "-1"}, 0.0),
        ({"Retry-After": "1.5"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "\u0663"}, 0.0),
        (
            {
                "Date": "Wed, 21 Oct 2015 07:27:30 GMT",
                "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30.0,
        ),
        # Past by any clock.
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Date": "nonsense", "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_both_of_its_forms(headers: dict[str, str], expected: float) -> None:
    assert retry_after_s(headers) == expected
