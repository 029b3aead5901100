"""A web server on loopback, as a process of its own, that answers each request after 30 ms.

    python -m benchmarks.slow_web DIRECTORY

It prints its port; /N is the Nth file of the directory, counted around. Connections are kept.
"""

import asyncio
import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LATENCY_S = 0.03
_END = b"\r\n\r\n"
_GET = re.compile(rb"GET /(\d+) HTTP/1\.1\r\n")


class _Answers(asyncio.Protocol):
    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies, self._left = bodies, b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        request, end, self._left = (self._left + data).partition(_END)
        if not end:
            self._left = request
            return
        asked = _GET.match(request + end)
        if asked is None:
            self._transport.close()
            return
        closes = b"\r\nconnection: close" in request.lower()
        self._loop.call_later(LATENCY_S, self._answer, int(asked[1]), closes)

    def _answer(self, number: int, closes: bool) -> None:
        body = self._bodies[number % len(self._bodies)]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
        kept = "Connection: close\r\n\r\n" if closes else "\r\n"
        self._transport.write((head + kept).encode() + body)
        if closes:
            self._transport.close()


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serves the files of a directory until the block ends; yields the URL before /N."""
    command = [sys.executable, "-m", "benchmarks.slow_web", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def _serve(directory: Path) -> None:
    bodies = [path.read_bytes() for path in sorted(directory.iterdir())]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(bodies), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def urls(base: str) -> Iterator[str]:
    """URLs without end."""
    return (f"{base}/{number}" for number in itertools.count())


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
