"""HTTP connections that reach checked addresses only and end when their time is over.

The socket goes to an address that was checked (pipelines/resolver), so a name that resolves
differently a moment later (DNS rebinding) changes nothing.
"""

import http.client
import io
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from model.errors import ItemFailure, Reason
from pipelines.resolver import Place, Resolver

# Headers and the framing of chunks come on top of the body.
_MAX_FRAMING_BYTES = 2**20
_POOL_SIZE = 64


class GuardedAdapter(HTTPAdapter):
    """Connects through `_GuardedConnection`; to a proxy, which finds the way itself, unchecked."""

    def __init__(self, resolver: Resolver, max_bytes: int) -> None:
        self._resolver, self._max_bytes = resolver, max_bytes
        self._unchecked = Resolver(None)
        super().__init__(pool_connections=_POOL_SIZE, pool_maxsize=_POOL_SIZE)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._guard(self.poolmanager, self._resolver)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        self._guard(manager, self._unchecked)
        return manager

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """The answer without what nobody asks of it: cookies, history, encoding."""
        response = requests.Response()
        response.status_code, response.reason = resp.status, resp.reason
        response.headers = CaseInsensitiveDict(resp.headers)
        response.raw, response.url, response.request = resp, str(req.url), req
        return response

    # A manager takes functions for its pool classes, whatever its annotation says.
    def _guard(self, manager: Any, resolver: Resolver) -> None:
        def pool(
            pool_class: Callable[..., Any],
            connection: Callable[..., Any],
            *where: Any,
            **options: Any,
        ) -> Any:
            made = pool_class(*where, **options)
            made.ConnectionCls = partial(connection, resolver=resolver, max_bytes=self._max_bytes)
            return made

        manager.pool_classes_by_scheme = {
            "http": partial(pool, urllib3.HTTPConnectionPool, _GuardedHTTP),
            "https": partial(pool, urllib3.HTTPSConnectionPool, _GuardedHTTPS),
        }


class _GuardedConnection(HTTPConnection):
    """Connects to checked addresses only, and reads an answer against one deadline.

    urllib3 sets `timeout` to the seconds that are left, before it connects and again before
    it reads.
    """

    def __init__(self, *args: Any, resolver: Resolver, max_bytes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._resolver = resolver
        self._max_wire_bytes = max_bytes + _MAX_FRAMING_BYTES

    def _new_conn(self) -> socket.socket:
        deadline_s = time.monotonic() + float(self.timeout or 0)
        # A proxy's answer to CONNECT is read with it; that of the last answer has its deadline.
        self.response_class = http.client.HTTPResponse
        found = self._resolver.find(self._dns_host, self.port, float(self.timeout or 0))
        return self._connect_one(found, deadline_s)

    def _connect_one(self, checked: Sequence[Place], deadline_s: float) -> socket.socket:
        error: OSError = TimeoutError("no time left to connect")
        for tried, (family, where) in enumerate(checked):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                # One that never answers leaves the others their share.
                connection.settimeout(_remaining(deadline_s) / (len(checked) - tried))
                connection.connect(where)
                # What is left bounds the TLS handshake as a whole.
                connection.settimeout(_remaining(deadline_s))
                for option in self.socket_options or ():
                    connection.setsockopt(*option)
                return connection
            except OSError as failed:
                connection.close()
                error = failed
        if isinstance(error, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(self, str(error)) from error
        raise urllib3.exceptions.NewConnectionError(self, str(error)) from error

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        deadline_s = time.monotonic() + float(self.timeout or 0)
        self.response_class = partial(  # type: ignore[assignment]
            _BoundedResponse, deadline_s=deadline_s, max_wire_bytes=self._max_wire_bytes
        )
        return super().getresponse()


class _GuardedHTTP(_GuardedConnection):
    """http."""


class _GuardedHTTPS(_GuardedConnection, HTTPSConnection):
    """https; the certificate is checked against the name, not the address."""


class _BoundedResponse(http.client.HTTPResponse):
    """Ends headers and body that come too slowly or never end."""

    def __init__(
        self,
        sock: socket.socket,
        *args: Any,
        deadline_s: float,
        max_wire_bytes: int,
        **options: Any,
    ) -> None:
        super().__init__(sock, *args, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, deadline_s, max_wire_bytes))


class _BoundedReader(io.RawIOBase):
    """A socket's bytes; each read may take only the time that is left."""

    def __init__(
        self, raw: io.RawIOBase, sock: socket.socket, deadline_s: float, max_bytes: int
    ) -> None:
        self._raw, self._sock = raw, sock
        self._deadline_s, self._left = deadline_s, max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_remaining(self._deadline_s))
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise ItemFailure(Reason.TOO_MANY_BYTES, "headers and body do not end")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _remaining(deadline_s: float) -> float:
    remaining_s = deadline_s - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("the deadline is over")
    return remaining_s
