"""A web server on loopback for the demo's pictures."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = "127.0.0.1"
# What bulk must be told before it reads from there.
NETWORK = "127.0.0.0/8"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve_directory(directory: Path) -> Iterator[str]:
    """Serve a directory while the block runs; yields its URL, without a slash at the end."""
    server = ThreadingHTTPServer((ADDRESS, 0), partial(_Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
