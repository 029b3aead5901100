"""The guarded way to read a URL, against loopback servers that misbehave."""

import gzip
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines import guarded_http
from pipelines.addresses import AddressRules
from pipelines.fetch import Fetcher

LOOPBACK = "127.0.0.0/8"
BODY = bytes(range(256)) * 40

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path by a function; remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    server: "LoopbackServer"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        try:
            self.server.answers[self.path](self)
        except OSError:
            # The client was right to hang up.
            self.close_connection = True

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Serves `answers` on a free port of one loopback address."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}{path}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[LoopbackServer]:
    server = LoopbackServer(address)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        running.answers["/image"] = lambda handler: handler.reply(200, BODY)
        yield running


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(allow_private=[LOOPBACK], timeout_s=10, max_bytes=len(BODY)) as made:
        yield made


def reason(fetcher: Fetcher, url: str) -> Reason:
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(url)
    return caught.value.reason


def redirect(location: str, status: int = 302) -> Answer:
    return lambda handler: handler.reply(status, b"moved", Location=location)


# Addresses, without network.


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%1", "link-local"),
        ("168.63.129.16", "cloud metadata"),
        ("192.0.0.192", "protocol assignment"),
        ("198.18.0.1", "benchmarking"),
        ("203.0.113.9", "documentation"),
        ("2001:db8::1", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("4000::1", "reserved"),
        ("64:ff9b:1::1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:10.0.0.1", "private"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::8.8.8.8", "IPv4-compatible"),
        ("2002:7f00:0001::", "6to4"),
        ("2002:a9fe:a9fe::1", "6to4"),
        ("64:ff9b::127.0.0.1", "NAT64 form of loopback"),
        ("64:ff9b::a9fe:a9fe", "NAT64 form of link-local"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "protocol assignment"),
    ],
)
def test_an_address_behind_a_firewall_is_refused(address: str, kind: str) -> None:
    assert AddressRules().refusal(address) == kind


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
        *("169.253.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111", "2a00::1"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    ],
)
def test_a_public_address_is_not(address: str) -> None:
    assert AddressRules().refusal(address) is None


def test_a_named_network_is_let_through_and_no_other() -> None:
    rules = AddressRules(["10.1.0.0/16", "fd00:1::/32"])
    assert rules.refusal("10.1.2.3") is None
    assert rules.refusal("::ffff:10.1.2.3") is None
    assert rules.refusal("fd00:1::5") is None
    assert rules.refusal("10.2.0.1") == "private"
    assert rules.refusal("fd00:2::5") == "private"
    # A tunnel leads elsewhere than this machine's own route to that network.
    assert rules.refusal("64:ff9b::10.1.2.3") == "NAT64 form of private"
    assert rules.refusal("2002:0a01:0203::") == "6to4"


@pytest.mark.parametrize("network", ["localhost", "127.0.0.1/40", "127.0.0.1/8", ""])
def test_what_is_no_network_is_refused_at_once(network: str) -> None:
    with pytest.raises(InvalidInput, match="--allow_private"):
        Fetcher(allow_private=[network])


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


def test_a_password_does_not_reach_the_message(fetcher: Fetcher) -> None:
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch("http://user:secret@127.0.0.1/x")
    assert "secret" not in caught.value.message


# The guard in the connection.


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001"])
def test_loopback_is_refused_however_it_is_written(host: str, server: LoopbackServer) -> None:
    with Fetcher() as fetcher:
        assert reason(fetcher, f"http://{host}:{server.server_port}/image") == (
            Reason.REFUSED_ADDRESS
        )
    assert server.asked == []


def test_allowed_loopback_is_read_and_we_say_who_we_are(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    assert fetcher.fetch(server.url("/image")) == BODY
    [(_, headers)] = server.asked
    assert headers["User-Agent"].startswith("captionbeam/")
    assert not {"Cookie", "Authorization"} & set(headers)


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
    with serving("127.0.0.2") as other, Fetcher(allow_private=["127.0.0.1/32"]) as fetcher:
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

    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", look_up)
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

    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", look_up)
    with serving("127.0.0.2") as forbidden, Fetcher(allow_private=["127.0.0.1/32"]) as fetcher:
        assert fetcher.fetch(f"http://two.test:{server.server_port}/image") == BODY
        assert forbidden.asked == []


def test_an_unknown_name_is_a_dns_failure(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", look_up)
    assert reason(fetcher, "http://nowhere.test/") == Reason.DNS


def test_a_resolver_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def look_up(*_: Any, **__: Any) -> list[Any]:
        never.wait()
        return []

    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", look_up)
    with Fetcher(timeout_s=0.2) as fetcher:
        assert reason(fetcher, "http://slow.test/") == Reason.TIMEOUT
    never.set()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_used(
    name: str, server: LoopbackServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.setenv("no_proxy", "")
        assert fetcher.fetch(server.url("/image")) == BODY
        assert proxy.asked == []


def test_no_cookie_comes_back(server: LoopbackServer, fetcher: Fetcher) -> None:
    server.answers["/cookie"] = lambda handler: handler.reply(
        302, Location="/image", Set_Cookie="id=1; Path=/"
    )
    fetcher.fetch(server.url("/cookie"))
    fetcher.fetch(server.url("/image"))
    assert server.paths == ["/cookie", "/image", "/image"]
    assert not any("Cookie" in headers for _, headers in server.asked)


# Bytes and time.


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"x" * 4096)


def drip(handler: Handler, head: bytes, drop: bytes) -> None:
    """Never ends, never pauses for longer than a per-read timeout."""
    handler.wfile.write(head)
    while not handler.server.stopped.wait(0.05):
        handler.wfile.write(drop)


def gzip_bomb(handler: Handler) -> None:
    handler.reply(200, gzip.compress(bytes(50 * 2**20)), Content_Encoding="gzip")


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.reply(200, BODY + b"x"),
        endless,
        gzip_bomb,
    ],
    ids=["announced", "endless", "gzip"],
)
def test_a_body_over_the_cap_is_cut(
    answer: Answer, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = answer
    assert reason(fetcher, server.url("/")) == Reason.TOO_MANY_BYTES


def test_an_announced_size_over_the_cap_is_not_waited_for(server: LoopbackServer) -> None:
    def announce(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        handler.server.stopped.wait()

    server.answers["/"] = announce
    with Fetcher(allow_private=[LOOPBACK]) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.TOO_MANY_BYTES


# `int` refuses the first, a float holds neither.
@pytest.mark.parametrize("digits", [5_000, 400])
def test_an_announced_size_of_any_length_is_compared(
    digits: int, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = lambda handler: handler.reply(
        200, BODY, **{"Content-Length": "9" * digits}
    )
    assert reason(fetcher, server.url("/")) == Reason.TOO_MANY_BYTES
    assert server.paths == ["/"]


def test_an_announced_size_with_leading_zeros_is_its_number(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    size = f"{len(BODY):04000d}"
    server.answers["/"] = lambda handler: handler.reply(200, BODY, **{"Content-Length": size})
    assert fetcher.fetch(server.url("/")) == BODY


def test_an_answer_that_the_http_library_cannot_parse_is_a_failure(
    server: LoopbackServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unparsable(*_: Any, **__: Any) -> None:
        "é".encode("ascii")

    monkeypatch.setattr(guarded_http.GuardedAdapter, "send", unparsable)
    assert reason(fetcher, server.url("/")) == Reason.CONNECTION


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 %b OK\r\n\r\n" % (b"2" * 5_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n" % (b"z" * 5_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\nContent-Encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; expires=%b\r\n\r\n" % (b"9" * 5_000),
        b"\xff\xfe" * 100,
    ],
    ids=["status", "chunk", "gzip", "cookie", "noise"],
)
def test_a_garbled_answer_fails_its_own_item(
    answer: bytes, server: LoopbackServer, fetcher: Fetcher
) -> None:
    def garble(handler: Handler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    server.answers["/"] = garble
    assert reason(fetcher, server.url("/")) in (Reason.CONNECTION, Reason.EMPTY)


def test_framing_that_outgrows_the_body_is_cut(server: LoopbackServer, fetcher: Fetcher) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not handler.server.stopped.is_set():
            handler.wfile.write(b"1;" + b"x" * 4000 + b"\r\nx\r\n")

    server.answers["/"] = answer
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(server.url("/"))
    # Not the cap of the body, which a byte a chunk reaches some 40 MB later.
    assert caught.value.message == "headers and body do not end"


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 200 O", b"K"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "chunks", "header", "status", "continue"],
)
def test_a_drip_ends_at_the_deadline(head: bytes, drop: bytes, server: LoopbackServer) -> None:
    server.answers["/"] = lambda handler: drip(handler, head, drop)
    with Fetcher(allow_private=[LOOPBACK], timeout_s=0.5) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.TIMEOUT


def test_silence_ends_at_the_deadline_and_is_not_asked_again(server: LoopbackServer) -> None:
    server.answers["/"] = lambda handler: drip(handler, b"", b"")
    with Fetcher(allow_private=[LOOPBACK], timeout_s=0.3) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.TIMEOUT
    assert server.paths == ["/"]


def test_a_tls_handshake_with_silence_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with Fetcher(allow_private=[LOOPBACK], timeout_s=0.3) as fetcher:
            assert reason(fetcher, f"https://127.0.0.1:{port}/") == Reason.TIMEOUT


def test_what_speaks_no_tls_is_a_connection_failure(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    url = server.url("/image").replace("http:", "https:")
    assert reason(fetcher, url) == Reason.CONNECTION


# Answers.


@pytest.mark.parametrize(
    ("status", "expected", "asked"),
    [
        (404, Reason.HTTP_4XX, 1),
        (429, Reason.HTTP_4XX, 1),
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
