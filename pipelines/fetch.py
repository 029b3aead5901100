"""The one guarded way to read a URL: public addresses only, bounded in bytes and in time.

The address is checked in the connection itself (pipelines/guarded_http), on every connect and
every redirect. Nothing is taken from the environment (proxies, .netrc), no cookie is kept and
no credential is sent.
"""

import random
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import requests
import urllib3

from model.errors import ItemFailure, Reason
from model.image_bytes import Limits
from pipelines.addresses import AddressRules
from pipelines.guarded_http import GuardedAdapter

DEFAULT_TIMEOUT_S = 30.0
MAX_REDIRECTS = 5
# Upper bounds of the pauses before the second and the third try; the pause is uniform below.
_PAUSE_BOUNDS_S = (0.25, 0.5)
_CHUNK_BYTES = 64 * 2**10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _TransientFailure(ItemFailure):
    """May pass when asked again."""


class Fetcher:
    """Reads URLs; safe to call from many threads. Holds connections: close it."""

    def __init__(
        self,
        *,
        allow_private: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_bytes: int | None = None,
        max_redirects: int = MAX_REDIRECTS,
    ) -> None:
        """Keeps the settings; nothing is connected.

        Args:
          allow_private: networks that may be reached although they are not public.
          timeout_s: seconds for one URL, with its redirects and retries.
          max_bytes: largest body; that of `model.image_bytes.Limits` when omitted.
          max_redirects: how many are followed.

        Raises:
          InvalidInput: `allow_private` names something that is no network.
        """
        self._timeout_s = timeout_s
        self._max_bytes = Limits().max_bytes if max_bytes is None else max_bytes
        self._max_redirects = max_redirects
        self._adapter = GuardedAdapter(AddressRules(allow_private), self._max_bytes)
        self._headers = {
            "User-Agent": f"captionbeam/{_version()}",
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",
        }

    def __enter__(self) -> Self:
        """The fetcher itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._adapter.close()

    def fetch(self, url: str) -> bytes:
        """Reads the whole body of an http or https URL.

        Connection errors and 5xx answers are tried again, twice at most.

        Raises:
          ItemFailure: INVALID_URL, REFUSED_ADDRESS, DNS, CONNECTION, TIMEOUT,
            TOO_MANY_REDIRECTS, HTTP_4XX, HTTP_5XX, TOO_MANY_BYTES or EMPTY.
        """
        deadline_s = time.monotonic() + self._timeout_s
        for bound_s in _PAUSE_BOUNDS_S:
            try:
                return self._follow(url, deadline_s)
            except _TransientFailure as failure:
                pause_s = random.uniform(0, bound_s)
                if time.monotonic() + pause_s >= deadline_s:
                    raise failure
                time.sleep(pause_s)
        return self._follow(url, deadline_s)

    def _follow(self, url: str, deadline_s: float) -> bytes:
        for _ in range(self._max_redirects + 1):
            request = _prepare(url, self._headers)
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise ItemFailure(Reason.TIMEOUT, f"no answer within {self._timeout_s:g} s")
            found = self._try(request, remaining_s)
            if isinstance(found, bytes):
                return found
            url = _join(str(request.url), found)
        raise ItemFailure(
            Reason.TOO_MANY_REDIRECTS, f"more than {self._max_redirects} redirects; the next: {url}"
        )

    def _try(self, request: requests.PreparedRequest, remaining_s: float) -> bytes | str:
        """What `_ask` returns; whatever a server may do becomes an ItemFailure."""
        try:
            return self._ask(request, remaining_s)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise ItemFailure(Reason.TIMEOUT, f"not done within {self._timeout_s:g} s") from error
        # A certificate stays as it is; asking again cannot help.
        except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
            raise ItemFailure(Reason.CONNECTION, f"TLS: {_cause(error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _TransientFailure(Reason.CONNECTION, _cause(error)) from error
        # Headers that the libraries below parse without a guard.
        except ValueError as error:
            raise ItemFailure(Reason.CONNECTION, f"an unusable answer: {error}") from error

    def _ask(self, request: requests.PreparedRequest, remaining_s: float) -> bytes | str:
        """The body, or the address that a redirect gives."""
        timeout = urllib3.Timeout(total=remaining_s)
        # Through the adapter: a Session would add cookies, .netrc and proxies.
        response = self._adapter.send(request, stream=True, timeout=timeout)  # type: ignore[arg-type]
        try:
            if response.status_code in _REDIRECTS:
                return _location(response)
            _check_status(response)
            return self._read(response.raw)
        finally:
            response.close()

    def _read(self, raw: urllib3.HTTPResponse) -> bytes:
        if _announced_bytes(raw) > self._max_bytes:
            raise _too_many_bytes(f"over {self._max_bytes}", self._max_bytes)
        body = bytearray()
        for chunk in raw.stream(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > self._max_bytes:
                raise _too_many_bytes(f"over {self._max_bytes}", self._max_bytes)
        if not body:
            raise ItemFailure(Reason.EMPTY, "a body of 0 bytes, expected an image")
        return bytes(body)


def _prepare(url: str, headers: dict[str, str]) -> requests.PreparedRequest:
    # `urljoin` drops tabs and line ends silently, and a server would see another URL.
    if any(character < " " or character == "\x7f" for character in url):
        raise ItemFailure(Reason.INVALID_URL, f"{url!r} has control characters")
    try:
        request = requests.Request("GET", url, headers=headers).prepare()
        parsed = urllib3.util.parse_url(str(request.url))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise ItemFailure(Reason.INVALID_URL, f"{url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ItemFailure(Reason.INVALID_URL, f"{url!r}: expected http://… or https://…")
    if parsed.auth is not None:
        raise ItemFailure(Reason.INVALID_URL, "has a user name; credentials are never sent")
    return request


def _location(response: requests.Response) -> str:
    # Header bytes reach us as Latin-1; addresses are UTF-8.
    location = response.headers.get("Location", "").encode("latin-1").decode("utf-8", "replace")
    if not location:
        raise ItemFailure(Reason.INVALID_URL, f"{response.status_code} without a Location")
    return location


def _join(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise ItemFailure(Reason.INVALID_URL, f"redirected to {location!r}: {error}") from error


def _announced_bytes(raw: urllib3.HTTPResponse) -> float:
    """The size that the headers give; 0 when they give none."""
    announced = raw.headers.get("Content-Length", "")
    if not (announced.isascii() and announced.isdecimal()):
        return 0
    # As a float, since `int` refuses thousands of digits; they become infinity.
    return float(announced)


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    said = f"{status} {response.reason}"
    if 200 <= status < 300:
        return
    if 400 <= status < 500:
        raise ItemFailure(Reason.HTTP_4XX, said)
    if 500 <= status < 600:
        raise _TransientFailure(Reason.HTTP_5XX, said)
    raise ItemFailure(Reason.CONNECTION, f"{said}: expected 200")


def _too_many_bytes(got: str, expected: int) -> ItemFailure:
    return ItemFailure(Reason.TOO_MANY_BYTES, f"{got} bytes, expected at most {expected}")


def _cause(error: BaseException) -> str:
    """The innermost sentence; the outer ones repeat URL and object addresses."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    return _cause(reason) if isinstance(reason, BaseException) else str(error)


def _version() -> str:
    try:
        return version("captionbeam")
    except PackageNotFoundError:
        return "unknown"
