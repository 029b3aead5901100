"""Answers without end: too many bytes, too slow, or not to be parsed."""

import gzip
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from model.errors import ItemFailure, Reason
from pipelines import guarded_http
from pipelines.fetch import Fetcher
from pipelines.resolver import Resolver
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


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with fetching(FakeClock()) as made:
        yield made


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


def gzip_of_zeros(size: int) -> bytes:
    """Compressed piece by piece; the whole is never held."""
    packer = zlib.compressobj(wbits=31)
    piece = bytes(2**20)
    return b"".join(packer.compress(piece) for _ in range(size // 2**20)) + packer.flush()


BOMB = gzip_of_zeros(64 * 2**20)


def gzip_bomb(handler: Handler) -> None:
    handler.reply(200, BOMB, Content_Encoding="gzip")


def test_a_gzip_bomb_is_cut_before_it_fills_the_memory(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = gzip_bomb
    fetcher.fetch(server.url("/image"))
    tracemalloc.start()
    try:
        assert reason(fetcher, server.url("/")) == Reason.TOO_MANY_BYTES
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("encoding", ["br", "ZSTD", "gzip, br", "br, gzip", "compress"])
def test_an_encoding_that_nobody_asked_for_is_not_unpacked(
    encoding: str, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = lambda handler: handler.reply(200, BODY, Content_Encoding=encoding)
    with pytest.raises(ItemFailure, match="an encoding nobody asked for") as caught:
        fetcher.fetch(server.url("/"))
    assert caught.value.reason == Reason.CONNECTION
    assert server.paths == ["/"]


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("identity", BODY),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
    ],
)
def test_what_is_always_at_hand_is_unpacked(
    encoding: str, packed: bytes, server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = lambda handler: handler.reply(200, packed, Content_Encoding=encoding)
    assert fetcher.fetch(server.url("/")) == BODY


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
    with fetching(max_bytes=None) as fetcher:
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


def test_a_message_is_no_longer_than_a_person_reads(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    server.answers["/"] = redirect("https://[" + "x" * 50_000)
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(server.url("/"))
    assert caught.value.message.startswith("redirected to 'https://[xxx")
    assert len(caught.value.message) == 501
    assert caught.value.message.endswith("x…")


def test_an_address_that_never_answers_leaves_time_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    waited: list[tuple[str, float]] = []

    class Socket:
        def __init__(self, *_: Any) -> None:
            self.timeout_s = 0.0

        def settimeout(self, timeout_s: float) -> None:
            self.timeout_s = timeout_s

        def connect(self, where: tuple[str, int]) -> None:
            nonlocal now_s
            waited.append((where[0], self.timeout_s))
            if where[0] == "refuses":
                raise ConnectionRefusedError
            now_s += self.timeout_s
            raise TimeoutError

        def close(self) -> None: ...

    monkeypatch.setattr(guarded_http, "socket", SimpleNamespace(socket=Socket, SOCK_STREAM=1))
    monkeypatch.setattr(guarded_http, "time", SimpleNamespace(monotonic=lambda: now_s))
    places = [(2, (name, 80)) for name in ("silent", "refuses", "silent too", "last")]
    resolver = Resolver(None)
    monkeypatch.setattr(resolver, "find", lambda *_: places)
    connection = guarded_http._GuardedHTTP(
        "a.test", 80, resolver=resolver, max_bytes=1, timeout=12.0
    )
    with pytest.raises(urllib3.exceptions.ConnectTimeoutError):
        connection._new_conn()
    assert waited == [("silent", 3.0), ("refuses", 3.0), ("silent too", 4.5), ("last", 4.5)]


def test_headers_without_end_are_cut(server: LoopbackServer, fetcher: Fetcher) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server.stopped.is_set():
            handler.wfile.write(b"X-More: %b\r\n" % (b"x" * 4000))

    server.answers["/"] = answer
    assert reason(fetcher, server.url("/")) == Reason.CONNECTION


def test_an_interim_answer_without_end_is_cut(server: LoopbackServer, fetcher: Fetcher) -> None:
    def answer(handler: Handler) -> None:
        while not handler.server.stopped.is_set():
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    server.answers["/"] = answer
    assert reason(fetcher, server.url("/")) == Reason.TOO_MANY_BYTES


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
    with fetching(url_timeout_s=0.5) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.TIMEOUT


def test_silence_ends_at_the_deadline_and_is_not_asked_again(server: LoopbackServer) -> None:
    server.answers["/"] = lambda handler: drip(handler, b"", b"")
    with fetching(url_timeout_s=0.3) as fetcher:
        assert reason(fetcher, server.url("/")) == Reason.TIMEOUT
    assert server.paths == ["/"]


def test_a_tls_handshake_with_silence_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with fetching(url_timeout_s=0.3) as fetcher:
            assert reason(fetcher, f"https://127.0.0.1:{port}/") == Reason.TIMEOUT


def test_what_speaks_no_tls_is_a_connection_failure(
    server: LoopbackServer, fetcher: Fetcher
) -> None:
    url = server.url("/image").replace("http:", "https:")
    assert reason(fetcher, url) == Reason.CONNECTION
