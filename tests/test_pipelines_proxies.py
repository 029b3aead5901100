"""A proxy of the environment: refused with one line, or gone through where it is asked for."""

from collections.abc import Iterator

import pytest

from model.errors import InvalidInput, Reason
from pipelines.proxies import Proxies
from tests.fetch_fixtures import (
    BODY,
    Handler,
    LoopbackServer,
    answered,
    fetching,
    reason,
    redirect,
    serving,
)

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def proxy() -> Iterator[LoopbackServer]:
    """Answers for http://site.test and its https sibling."""
    with serving() as running:
        running.answers["http://site.test/robots.txt"] = answered(404)
        running.answers["http://site.test/image"] = answered(200, BODY)
        yield running


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_is_refused_and_not_asked(
    name: str, proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy.url("").replace("://", "://me:secret@"))
    with fetching() as fetcher, pytest.raises(InvalidInput) as caught:
        fetcher.fetch("http://site.test/image")
    for part in ("proxy for site.test", "no_proxy", "--allow_proxy"):
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)
    assert proxy.asked == proxy.asked_rules == []


def test_a_proxy_is_gone_through_when_asked_for(
    proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url(""))
    # The proxy itself lies in a private network that nobody named.
    with fetching(allow_proxy=True, allow_private=()) as fetcher:
        assert fetcher.fetch("http://site.test/image") == BODY
    assert proxy.paths == ["http://site.test/robots.txt", "http://site.test/image"]


def test_https_goes_through_a_tunnel_that_a_proxy_may_refuse(
    proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def connect(handler: Handler) -> None:
        asked.append(handler.path)
        handler.reply(403)

    monkeypatch.setattr(Handler, "do_CONNECT", connect, raising=False)
    monkeypatch.setenv("https_proxy", proxy.url(""))
    with fetching(allow_proxy=True, allow_private=(), url_retries=0) as fetcher:
        assert reason(fetcher, "https://site.test/image") == Reason.CONNECTION
    assert asked == ["site.test:443"]


def test_a_body_without_end_is_cut_behind_a_proxy_too(
    proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        # Without end, as far as the deadline goes.
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.server.stopped.wait(0.05)
        handler.close_connection = True

    proxy.answers["http://site.test/image"] = drip
    monkeypatch.setenv("http_proxy", proxy.url(""))
    with fetching(allow_proxy=True, url_timeout_s=0.5) as fetcher:
        assert reason(fetcher, "http://site.test/image") == Reason.TIMEOUT


@pytest.mark.parametrize("exception", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_what_no_proxy_excepts_is_read_directly(
    exception: str, proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url(""))
    monkeypatch.setenv("no_proxy", exception)
    with serving() as server, fetching() as fetcher:
        assert fetcher.fetch(server.url("/image")) == BODY
    assert proxy.asked == proxy.asked_rules == []


@pytest.mark.parametrize("path", ["/image", "/robots.txt"])
@pytest.mark.parametrize("status", [302, 308])
def test_a_redirect_to_where_a_proxy_is_refused_fails_its_item_alone(
    path: str, status: int, proxy: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url(""))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server, fetching() as fetcher:
        server.answers[path] = redirect("http://site.test/image", status)
        assert reason(fetcher, server.url("/image")) == Reason.REFUSED_ADDRESS
    assert proxy.asked == proxy.asked_rules == []


@pytest.mark.parametrize(
    ("value", "said"), [("socks5://127.0.0.1:1080", "socks5"), ("http://[::1", "nothing")]
)
def test_a_proxy_that_speaks_no_http_is_refused(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with fetching(allow_proxy=True) as fetcher, pytest.raises(InvalidInput, match=f"speaks {said}"):
        fetcher.fetch("http://site.test/image")


def test_a_job_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["http://inside.test/a", "http://inside.test/b", "http://site.test/a"]
    Proxies(False).check(urls)
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "inside.test")
    Proxies(False).check([])
    Proxies(False).check([*urls[:2], "http://[::1", "http://"])
    Proxies(True).check(urls)
    with pytest.raises(InvalidInput, match=r"proxy for site\.test"):
        Proxies(False).check(urls)
