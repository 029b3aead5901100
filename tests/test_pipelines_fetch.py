"""The guarded way to read a URL: what is asked, of whom, and how an answer is understood."""

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.errors import ItemFailure, Reason
from pipelines import resolver
from pipelines.fetch import Fetcher
from tests.fetch_fixtures import (
    BODY,
    Answer,
    FakeClock,
    Handler,
    LoopbackServer,
    fetching,
    reason,
    redirect,
    serving,
)
from tests.replica_fixtures import make_certificate


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with fetching(FakeClock()) as made:
        yield made


# URLs.


@pytest.mark.parametrize(
    "url",
    [
        *("", "photo.jpg", "//127.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/x"),
        *("gopher://127.0.0.1/x", "data:image/png;base64,AAAA", "http://", "http:///x"),
        *("http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:port/"),
        *("http://user:secret@127.0.0.1/x", "http://user@127.0.0.1/x"),
        *("http://127.0.0.1/a\r\nX-Evil: 1", "http://127.0.0.1/\x00"),
    ],
)
def test_an_unusable_url_is_invalid(url: str, fetcher: Fetcher) -> None:
    assert reason(fetcher, url) == Reason.INVALID_URL


def test_a_certificate_that_nobody_vouches_for_is_a_failure_and_not_asked_again(
    tmp_path: Path, server: LoopbackServer, fetcher: Fetcher
) -> None:
    made = make_certificate(tmp_path / "cert.pem", ["localhost"], ["127.0.0.1"])
    (tmp_path / "key.pem").write_bytes(made.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    handshakes: list[object] = []
    context.sni_callback = lambda *names: handshakes.append(names)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(f"https://localhost:{server.server_port}/image")
    assert caught.value.reason == Reason.CONNECTION
    assert "TLS: " in caught.value.message
    assert "self-signed certificate" in caught.value.message
    assert len(handshakes) == 1
    assert server.asked == server.asked_rules == []


def test_a_password_does_not_reach_the_message(fetcher: Fetcher) -> None:
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch("http://user:secret@127.0.0.1/x")
    assert "secret" not in caught.value.message


# The guard in the connection.


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "127.0.0.1."),
        *("2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.1", "0x7f.0x0.0x0.0x1"),
        # Digits and dots of other scripts, which some libraries turn into these.
        *("\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1"),
        *(
            "0",
            "0.0.0.0",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
        ),
    ],
)
def test_loopback_is_not_reached_however_it_is_written(host: str, server: LoopbackServer) -> None:
    with fetching(allow_private=()) as fetcher:
        found = reason(fetcher, f"http://{host}:{server.server_port}/image")
    # A resolver that takes no such spelling, or a machine without IPv6, is as good.
    plain = host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0.0.0.0")
    assert found in {Reason.REFUSED_ADDRESS, *(() if plain else (Reason.DNS, Reason.INVALID_URL))}
    assert server.asked == server.asked_rules == []


def test_allowed_loopback_is_read_and_we_say_who_we_are(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    assert fetcher.fetch(server.url("/image")) == BODY
    [(_, headers)] = server.asked
    assert headers["User-Agent"].startswith("captionbeam/")
    assert not {"Cookie", "Authorization", "Referer"} & set(headers)
    assert server.asked_rules[0][1]["User-Agent"] == headers["User-Agent"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_relative_redirect_is_followed(
    status: int, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/a/b"] = redirect("../image", status)
    assert fetcher.fetch(server.url("/a/b")) == BODY


def test_a_redirect_to_cloud_metadata_is_refused(server: LoopbackServer, fetcher: Fetcher) -> None:
    server.answers["/"] = redirect("http://169.254.169.254/latest/meta-data/")
    assert reason(fetcher, server.url("/")) == Reason.REFUSED_ADDRESS


def test_a_redirect_to_another_loopback_address_is_refused(server: LoopbackServer) -> None:
    with serving("127.0.0.2") as other, fetching(allow_private=("127.0.0.1/32",)) as fetcher:
        other.answers["/image"] = lambda handler: handler.reply(200, BODY)
        server.answers["/"] = redirect(other.url("/image"))
        assert reason(fetcher, server.url("/")) == Reason.REFUSED_ADDRESS
        assert other.asked == []


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "http://user:pw@127.0.0.1/", "", "http://[bad", "//[::1/", "//[x]/"],
)
def test_a_redirect_out_of_http_is_refused(
    location: str, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = redirect(location)
    assert reason(fetcher, server.url("/")) == Reason.INVALID_URL


def test_five_redirects_are_followed_and_a_sixth_is_not(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    for step in range(1, 7):
        server.answers[f"/{step}"] = redirect(f"/{step - 1}" if step > 1 else "/image")
    assert fetcher.fetch(server.url("/5")) == BODY
    assert reason(fetcher, server.url("/6")) == Reason.TOO_MANY_REDIRECTS


def test_a_name_is_resolved_once_and_its_checked_address_used(
    server: LoopbackServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebinding resolver: first the allowed address, then another one."""
    names: list[str] = []
    answers = iter(["127.0.0.1", "127.0.0.2"])

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(resolver.socket, "getaddrinfo", look_up)
    assert fetcher.fetch(f"http://rebind.test:{server.server_port}/image") == BODY
    assert names == ["rebind.test"]
    assert server.asked[0][1]["Host"] == f"rebind.test:{server.server_port}"


def test_of_several_addresses_only_a_permitted_one_is_used(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        del host
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(resolver.socket, "getaddrinfo", look_up)
    with (
        serving("127.0.0.2", server.server_port) as forbidden,
        fetching(allow_private=("127.0.0.1/32",)) as fetcher,
    ):
        assert fetcher.fetch(f"http://two.test:{server.server_port}/image") == BODY
        assert forbidden.asked == forbidden.asked_rules == []


def test_an_unknown_name_is_a_dns_failure(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(resolver.socket, "getaddrinfo", look_up)
    assert reason(fetcher, "http://nowhere.test/") == Reason.DNS


def test_a_resolver_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def look_up(*_: Any, **__: Any) -> list[Any]:
        never.wait()
        return []

    monkeypatch.setattr(resolver.socket, "getaddrinfo", look_up)
    with fetching(url_timeout_s=0.2) as fetcher:
        assert reason(fetcher, "http://slow.test/") == Reason.TIMEOUT
    never.set()


def test_nothing_of_netrc_is_sent(
    tmp_path: Path, server: LoopbackServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.answers["/"] = redirect("/image")
    fetcher.fetch(server.url("/"))
    assert not any("Authorization" in headers for _, headers in server.asked)


def test_no_cookie_comes_back(server: LoopbackServer, fetcher: Fetcher) -> None:
    server.answers["/cookie"] = lambda handler: handler.reply(
        302, Location="/image", Set_Cookie="id=1; Path=/"
    )
    fetcher.fetch(server.url("/cookie"))
    fetcher.fetch(server.url("/image"))
    assert server.paths == ["/cookie", "/image", "/image"]
    assert not any("Cookie" in headers for _, headers in server.asked)


# Answers.


@pytest.mark.parametrize(
    ("status", "expected", "asked"),
    [
        (404, Reason.HTTP_4XX, 1),
        (429, Reason.HTTP_429, 3),
        (500, Reason.HTTP_5XX, 3),
        (503, Reason.HTTP_5XX, 3),
        (204, Reason.EMPTY, 1),
        (200, Reason.EMPTY, 1),
        (304, Reason.CONNECTION, 1),
    ],
)
def test_a_status_has_its_reason_and_its_number_of_tries(
    status: int, expected: Reason, asked: int, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = lambda handler: handler.reply(status)
    assert reason(fetcher, server.url("/")) == expected
    assert len(server.asked) == asked


def cut(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    handler.close_connection = True


def unavailable(handler: Handler) -> None:
    handler.reply(503, b"later")


@pytest.mark.parametrize("trouble", [cut, unavailable], ids=["cut", "503"])
def test_what_passes_when_asked_again_is_read(
    trouble: Answer, server: LoopbackServer, fetcher: Fetcher
) -> None:
    answers = iter([trouble, trouble, server.answers["/image"]])
    server.answers["/"] = lambda handler: next(answers)(handler)
    assert fetcher.fetch(server.url("/")) == BODY


def test_a_body_cut_short_is_never_taken_for_whole(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = cut
    assert reason(fetcher, server.url("/")) == Reason.CONNECTION
    assert len(server.asked) == 3


def test_a_dead_port_is_a_connection_failure(fetcher: Fetcher) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert reason(fetcher, f"http://127.0.0.1:{port}/") == Reason.CONNECTION


def test_many_threads_get_their_own_bodies(server: LoopbackServer, fetcher: Fetcher) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for number in range(40):
        server.answers[f"/{number}"] = lambda handler: handler.reply(200, handler.path.encode())
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda n: fetcher.fetch(server.url(f"/{n}")), range(40)))
    assert bodies == [f"/{number}".encode() for number in range(40)]


# What is known without asking.


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://10.0.0.1/a.jpg", "http://[::1]/"])
def test_what_is_known_of_a_url_is_what_fetching_it_says(url: str, fetcher: Fetcher) -> None:
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(url)
    known = fetcher.known_failure(url)
    assert known is not None
    assert (known.reason, known.message) == (caught.value.reason, caught.value.message)


def test_nothing_is_known_of_a_url_before_its_host_and_when_it_is_public(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    assert fetcher.known_failure("http://10.0.0.1/a.jpg") is None
    server.answers["/gone"] = lambda handler: handler.reply(404)
    assert reason(fetcher, server.url("/gone")) == Reason.HTTP_4XX
    assert fetcher.known_failure(server.url("/gone")) is None
    assert server.paths == ["/gone"]
