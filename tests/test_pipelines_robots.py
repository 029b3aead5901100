"""What a site asks of robots is honoured: robots.txt (RFC 9309) and X-Robots-Tag."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model.errors import ItemFailure, Reason
from pipelines import robots
from pipelines.robots import MAX_ROBOTS_BYTES, Robots, check_noai
from tests.fetch_fixtures import (
    BODY,
    FakeClock,
    Handler,
    LoopbackServer,
    answered,
    fetching,
    one_after_another,
    reason,
    redirect,
    serving,
)

SITE = "http://site.test"
NOTHING = b"User-agent: *\nDisallow: /\n"
TWO_GROUPS = "User-agent: captionbeam\nDisallow: /a\nUser-agent: captionbeam\nDisallow: /b"
PATIENCE_S = 20


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


def allows(rules: str, path: str) -> bool:
    """Whether a robots.txt lets us read a path of its site."""
    site = Robots(lambda _: rules.encode(), FakeClock().clock.now_s, 1)
    try:
        site.check(f"{SITE}{path}")
    except ItemFailure as failure:
        return failure.reason != Reason.ROBOTS
    return True


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("", "/a", True),
        ("User-agent: *\nDisallow:", "/a", True),
        ("User-agent: *\nDisallow: /", "/a", False),
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
        ("\ufeffUser-agent: *\nDisallow: /", "/a", False),
        ("User-agent: *\r\nDisallow: /private # ours\r\n", "/private/a", False),
        ("User-agent: *\r\nDisallow: /private # ours\r\n", "/public/a", True),
        ("User-agent: *\nDisallow: /a%20b", "/a b", False),
        # The longest rule counts, and of two that are as long the one that allows.
        ("User-agent: *\nDisallow: /\nAllow: /images/", "/images/a.jpg", True),
        ("User-agent: *\nAllow: /images/\nDisallow: /images/raw/", "/images/raw/a", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /*.png$", "/x/a.png", False),
        ("User-agent: *\nDisallow: /*.png$", "/x/a.png?s=1", True),
        # A group that names us stands for all others, wherever it stands.
        ("User-agent: captionbeam\nDisallow: /\n\nUser-agent: *\nDisallow:", "/a", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: CaptionBeam/2.0\nAllow: /", "/a", True),
        ("User-agent: captionbeam\nDisallow: /a\nUser-agent: *\nDisallow: /b", "/b", True),
        ("User-agent: x\nUser-agent: captionbeam\nUser-agent: y\nDisallow: /", "/a", False),
        (
            "User-agent: captionbeam\nDisallow: /a\nUser-agent: captionbeam\nDisallow: /b",
            "/a",
            False,
        ),
        (
            "User-agent: captionbeam\nDisallow: /a\nUser-agent: captionbeam\nDisallow: /b",
            "/b",
            False,
        ),
        # Others' groups are not ours, however near their names come.
        ("User-agent: googlebot\nDisallow: /", "/a", True),
        ("User-agent: caption\nDisallow: /", "/a", True),
        ("User-agent: captionbeam-news\nDisallow: /", "/a", True),
        ("User-agent: other\nDisallow: /", "/a", True),
        ("<!doctype html><p>User-agent: *</p>", "/a", True),
    ],
)
def test_rules_are_read_as_the_standard_says(rules: str, path: str, allowed: bool) -> None:
    assert allows(rules, path) == allowed


def test_a_hostile_file_is_no_more_than_its_size() -> None:
    """Each of these agents given each of these rules would be 60 million of them."""
    agents = "".join(f"User  Agent bot{number}\n" for number in range(10_000))
    rules = "".join(f"Disallow: /{number}\n" for number in range(6_000))
    site = Robots(lambda _: (agents + rules).encode(), FakeClock().clock.now_s, 1)
    site.check(f"{SITE}/a")
    [entry] = site._sites._entries.values()
    parsed: Any = entry.future.result()
    assert sum(len(group._rules) for group in parsed._user_agents.values()) <= 6_000


def test_what_robots_txt_forbids_is_not_asked_for(server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = answered(200, b"User-agent: *\nDisallow: /private")
    server.answers["/private"] = answered(200, BODY)
    with fetching() as fetcher, pytest.raises(ItemFailure) as caught:
        fetcher.fetch(server.url("/private"))
    assert caught.value.reason == Reason.ROBOTS
    assert "--ignore_robots" in caught.value.message
    assert server.asked == []
    with fetching(ignore_robots=True) as fetcher:
        assert fetcher.fetch(server.url("/private")) == BODY
    assert len(server.asked_rules) == 1


def test_a_redirect_is_asked_for_leave_at_its_own_site(server: LoopbackServer) -> None:
    with serving() as other, fetching() as fetcher:
        other.answers["/robots.txt"] = answered(200, NOTHING)
        server.answers["/"] = redirect(other.url("/image"))
        assert reason(fetcher, server.url("/")) == Reason.ROBOTS
        assert other.asked == []


def test_robots_txt_is_asked_for_once_a_site_and_again_when_it_is_old(
    server: LoopbackServer,
) -> None:
    clock = FakeClock()
    with fetching(clock) as fetcher:
        for _ in range(3):
            fetcher.fetch(server.url("/image"))
        assert len(server.asked_rules) == 1
        clock.time_s += 24 * 3600
        fetcher.fetch(server.url("/image"))
        assert len(server.asked_rules) == 2


def test_many_threads_ask_once_for_the_rules_and_all_of_them_wait(server: LoopbackServer) -> None:
    asked, go = threading.Event(), threading.Event()

    def later(handler: Handler) -> None:
        asked.set()
        assert go.wait(PATIENCE_S)
        handler.reply(200, NOTHING)

    server.answers["/robots.txt"] = later
    with fetching(url_timeout_s=PATIENCE_S) as fetcher, ThreadPoolExecutor(8) as pool:
        images = [pool.submit(reason, fetcher, server.url("/image")) for _ in range(8)]
        assert asked.wait(PATIENCE_S)
        go.set()
        assert {image.result(PATIENCE_S) for image in images} == {Reason.ROBOTS}
    assert len(server.asked_rules) == 1
    assert server.asked == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_site_that_has_no_rules_allows_all(status: int, server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = answered(status)
    with fetching() as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00"])
def test_rules_without_a_word_allow_all(body: bytes, server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = answered(200, body)
    with fetching() as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY


@pytest.mark.parametrize(
    ("status", "expected"), [(500, "http_5xx"), (503, "http_5xx"), (429, "http_429")]
)
def test_rules_that_cannot_be_read_forbid_the_site_for_a_while(
    status: int, expected: str, server: LoopbackServer
) -> None:
    server.answers["/robots.txt"] = answered(status)
    clock = FakeClock()
    with fetching(clock, url_retries=1) as fetcher:
        for _ in range(3):
            with pytest.raises(ItemFailure) as caught:
                fetcher.fetch(server.url("/image"))
            assert caught.value.reason == expected
            assert "robots.txt cannot be read" in caught.value.message
        assert len(server.asked_rules) == 2
        assert server.asked == []
        server.answers["/robots.txt"] = answered(404)
        clock.time_s += 300
        assert fetcher.fetch(server.url("/image")) == BODY


def test_trouble_that_passes_does_not_forbid(server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = one_after_another(answered(503), answered(404))
    with fetching(FakeClock()) as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY


def test_a_site_that_is_down_says_so() -> None:
    with socket.socket() as unused, fetching(FakeClock()) as fetcher:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/image"
        assert reason(fetcher, url) == Reason.CONNECTION


def test_rules_may_be_elsewhere_but_not_for_ever(server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = redirect("/rules")
    server.answers["/rules"] = answered(200, NOTHING)
    with fetching() as fetcher:
        assert reason(fetcher, server.url("/image")) == Reason.ROBOTS
    server.answers["/robots.txt"] = redirect("/robots.txt")
    with fetching() as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY
    assert len(server.asked_rules) == 1 + 6


def test_rules_are_read_through_the_guard(server: LoopbackServer) -> None:
    with serving("127.0.0.2") as inside, fetching(allow_private=("127.0.0.1/32",)) as fetcher:
        server.answers["/robots.txt"] = redirect(inside.url("/image"))
        assert reason(fetcher, server.url("/image")) == Reason.REFUSED_ADDRESS
        assert inside.asked == server.asked == []


def test_rules_without_end_are_cut_and_honoured(server: LoopbackServer) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(NOTHING)
        while not handler.server.stopped.is_set():
            handler.wfile.write(b"# more\n" * 1000)

    server.answers["/robots.txt"] = endless
    with fetching() as fetcher:
        assert reason(fetcher, server.url("/image")) == Reason.ROBOTS
    behind = b"#" * (MAX_ROBOTS_BYTES - 1) + b"\n" + NOTHING
    server.answers["/robots.txt"] = answered(200, behind)
    with fetching() as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY


def test_the_rules_of_many_sites_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robots, "_MAX_BYTES", 20_000)
    asked: list[str] = []

    def read(url: str) -> bytes:
        asked.append(url)
        return b"#" * 5_000

    sites = Robots(read, FakeClock().clock.now_s, 1)
    for number in range(50):
        sites.check(f"http://{number}.test/a")
        sites.check("http://again.test/a")
    assert len(sites._sites._entries) == 3
    # Who is asked for all the time is kept.
    assert asked.count("http://again.test/robots.txt") == 1


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ([], True),
        (["noindex, nofollow"], True),
        (["noai"], False),
        (["noimageai"], False),
        (["NoIndex ,  NoImageAI"], False),
        (["noindex", "noai"], False),
        (["captionbeam: noai"], False),
        (["CaptionBeam: nofollow, noimageai"], False),
        (["*: noai"], False),
        (["otherbot: noai, noimageai"], True),
        (["otherbot: noindex, captionbeam: noai"], False),
        (["otherbot: noai", "nofollow"], True),
        (["captionbeam-news: noai"], True),
        (["max-snippet: 20, noai"], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], False),
        (["unavailable_after: Wed, 25 Jun 2010 15:00:00 GMT, noai"], False),
        (["unavailable_after: Saturday, 25-Jun-10 15:00:00 PST, noimageai"], False),
        (["otherbot: unavailable_after: Wed, 25 Jun 2010 15:00:00 GMT, noai"], True),
        (["otherbot: max-image-preview: large, noai"], True),
        (["noaims"], True),
        (["", ",,:,"], True),
    ],
)
def test_an_image_that_is_not_for_machines_is_left(tags: list[str], taken: bool) -> None:
    if taken:
        check_noai(tags)
    else:
        with pytest.raises(ItemFailure) as caught:
            check_noai(tags)
        assert caught.value.reason == Reason.NOAI


def test_noai_is_honoured_in_any_header_unless_it_is_to_be_ignored(server: LoopbackServer) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("X-Robots-Tag", "otherbot: noindex")
        handler.send_header("X-Robots-Tag", "noimageai")
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY)

    server.answers["/"] = answer
    with fetching() as fetcher, pytest.raises(ItemFailure) as caught:
        fetcher.fetch(server.url("/"))
    assert caught.value.reason == Reason.NOAI
    assert "--ignore_noai" in caught.value.message
    with fetching(ignore_noai=True) as fetcher:
        assert fetcher.fetch(server.url("/")) == BODY
