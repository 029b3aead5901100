"""Loopback servers that misbehave, and a clock that no test waits for."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from model.errors import ItemFailure, Reason
from pipelines.fetch import Fetcher
from pipelines.fetch_settings import FetchSettings
from serving.retry import Clock

LOOPBACK = "127.0.0.0/8"
BODY = bytes(range(256)) * 40
# Loopback, without a limit of the rate.
SETTINGS = FetchSettings(
    allow_private=(LOOPBACK,), url_timeout_s=10, host_rate=0, max_bytes=len(BODY)
)

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path by a function; remembers what it was asked, robots.txt apart."""

    protocol_version = "HTTP/1.1"
    server: "LoopbackServer"

    def do_GET(self) -> None:
        server, rules = self.server, self.path == "/robots.txt"
        (server.asked_rules if rules else server.asked).append((self.path, dict(self.headers)))
        try:
            server.answers[self.path](self)
        except OSError:
            # The client was right to hang up.
            self.close_connection = True

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; _ in a header's name stands for -."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Serves `answers` on one loopback address, on a free port unless one is named."""

    daemon_threads = True

    def __init__(self, address: str, port: int = 0) -> None:
        super().__init__((address, port), Handler)
        self.answers: dict[str, Answer] = {
            "/robots.txt": lambda handler: handler.reply(404),
            "/image": lambda handler: handler.reply(200, BODY),
        }
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.asked_rules: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serving(address: str = "127.0.0.1", port: int = 0) -> Iterator[LoopbackServer]:
    server = LoopbackServer(address, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class FakeClock:
    """Time that passes when somebody sleeps; pauses without chance."""

    time_s: float = 0.0
    slept: list[float] = field(default_factory=list)
    share: float = 0.0

    def sleep(self, pause_s: float) -> None:
        self.slept.append(pause_s)
        self.time_s += pause_s

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time_s, self.sleep, lambda: self.share)


def fetching(clock: FakeClock | None = None, **changes: Any) -> Fetcher:
    """A fetcher with SETTINGS but for the changes."""
    return Fetcher(replace(SETTINGS, **changes), None if clock is None else clock.clock)


def reason(fetcher: Fetcher, url: str) -> Reason:
    with pytest.raises(ItemFailure) as caught:
        fetcher.fetch(url)
    return caught.value.reason


def redirect(location: str, status: int = 302) -> Answer:
    return lambda handler: handler.reply(status, b"moved", Location=location)


def answered(status: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(status, body, **headers)


def one_after_another(*answers: Answer) -> Answer:
    """The next answer each time; the last one for ever."""
    waiting = list(answers)
    return lambda handler: (waiting.pop(0) if len(waiting) > 1 else waiting[0])(handler)
