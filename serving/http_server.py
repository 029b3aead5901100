"""Serves an ASGI application with uvicorn in a thread of this process."""

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from model.errors import InvalidInput
from serving.addresses import Address

_START_TIMEOUT_S = 30.0


class HttpServer:
    """A listening HTTP server.

    Attributes:
      address: HOST:PORT that it listens on.
    """

    def __init__(
        self, app: Any, host: str, port: int, certificate: Path | None, key: Path | None
    ) -> None:
        """Binds the port; `start` begins to answer.

        Args:
          app: the application.
          host: address to listen on.
          port: 0 takes any free one.
          certificate: PEM file of the certificate chain, for HTTPS.
          key: PEM file of its key.

        Raises:
          InvalidInput: the address cannot be listened on.
        """
        self._socket = _bound(host, port)
        self.address = str(Address(host, self._socket.getsockname()[1]))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = uvicorn.Server(config)
        self._failure: Exception | None = None
        # Signals are the command's; uvicorn takes them in the main thread alone.
        self._thread = threading.Thread(target=self._serve, name="rest", daemon=True)

    def start(self) -> None:
        """Begins to answer; returns when it does.

        Raises:
          InvalidInput: it does not.
        """
        self._thread.start()
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started and self._thread.is_alive():
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.01)
        if not self._server.started:
            why = self._failure or f"it has not begun within {_START_TIMEOUT_S:g} s"
            raise InvalidInput(
                f"cannot answer on {self.address} ({why}); expected a port that nobody else "
                "listens on; choose another --rest_port, 0 for any free one"
            ) from self._failure

    def stop(self, grace_s: float) -> None:
        """Takes no new connection, lets requests under way finish for `grace_s`, then returns."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        # It ends so after a graceful stop that took too long.
        with contextlib.suppress(SystemExit):
            try:
                self._server.run(sockets=[self._socket])
            except Exception as error:
                if self._server.started:
                    raise
                self._failure = error


def _bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InvalidInput(
            f"cannot listen on {Address(host, port)} ({error.strerror or error}); "
            "choose another --rest_port, 0 for any free one"
        ) from error
    return bound
