"""The one guarded way to read a URL: public addresses only, bounded in bytes and in time.

The address is checked in the connection itself (pipelines/guarded_http), on every connect and
every redirect. A proxy of the environment is used only where it is asked for; nothing else is
taken from there (.netrc), no cookie is kept and no credential is sent. Each request waits for its
turn at the host, and asks for nothing that the site's robots.txt forbids.
"""

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

import requests
import urllib3

from model.errors import ItemFailure, Reason
from model.image_bytes import Limits
from pipelines import robots, urls
from pipelines.addresses import AddressRules
from pipelines.budget import Budget
from pipelines.fetch_settings import FetchSettings
from pipelines.guarded_http import GuardedAdapter
from pipelines.host_turns import MAX_WAIT_S, HostTurns
from pipelines.http_answers import REDIRECTS, TransientFailure, check_status, location, read_body
from pipelines.proxies import Proxies
from pipelines.resolver import Resolver
from serving.retry import Clock, Retries

_BASE_PAUSE_S = 0.25


@dataclass(frozen=True)
class _Wanted:
    """What is read: an image, or a robots.txt, which needs no leave and is cut at its cap."""

    max_bytes: int
    is_image: bool


class Fetcher:
    """Reads URLs; safe to call from many threads. Holds connections: close it."""

    def __init__(self, settings: FetchSettings | None = None, clock: Clock | None = None) -> None:
        """Keeps the settings; nothing is connected.

        Args:
          settings: what may be read, and how politely.
          clock: time and chance.
        """
        self._settings = settings = settings or FetchSettings()
        self._clock = clock = clock or Clock()
        max_bytes = settings.max_bytes or Limits().max_bytes
        self._image = _Wanted(max_bytes, is_image=True)
        self._rules = _Wanted(robots.MAX_ROBOTS_BYTES, is_image=False)
        self._proxies = Proxies(settings.allow_proxy)
        self._resolver = Resolver(AddressRules(settings.allow_private), clock.now_s)
        self._turns = HostTurns(settings.host_connections, settings.host_rate, clock)
        self._robots = robots.Robots(
            lambda url: self._read(url, self._rules), clock.now_s, MAX_WAIT_S
        )
        self._adapter = GuardedAdapter(self._resolver, max(max_bytes, self._rules.max_bytes))
        self._retries = Retries(attempts=settings.url_retries + 1, base_s=_BASE_PAUSE_S)
        self._headers = {
            "User-Agent": f"{robots.PRODUCT}/{_version()}",
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

        Connection errors, 429 and 5xx answers are tried again, after the pause that the server
        asks for.

        Raises:
          ItemFailure: INVALID_URL, REFUSED_ADDRESS, DNS, CONNECTION, TIMEOUT,
            TOO_MANY_REDIRECTS, HTTP_4XX, HTTP_429, HTTP_5XX, ROBOTS, NOAI, TOO_MANY_BYTES or
            EMPTY.
          InvalidInput: the environment names a proxy that cannot be used.
        """
        return self._read(url, self._image)

    def known_failure(self, url: str) -> ItemFailure | None:
        """What `fetch` would raise without asking anybody; None where that is not known."""
        try:
            request = urls.prepare(url, self._headers)
        except ItemFailure as failure:
            return failure
        if self._proxies.find(str(request.url)) is not None:
            return None
        return self._resolver.known_failure(*urls.place(request))

    def _read(self, url: str, wanted: _Wanted) -> bytes:
        budget = Budget(self._settings.url_timeout_s, self._clock)
        attempt = 0
        while True:
            try:
                return self._follow(url, wanted, budget)
            except TransientFailure as failure:
                pause_s = self._clock.uniform() * self._retries.bound_s(attempt)
                pause_s += failure.retry_after_s
                if self._retries.is_last(attempt) or pause_s >= budget.left_s():
                    raise
            self._clock.sleep(pause_s)
            attempt += 1

    def _follow(self, url: str, wanted: _Wanted, budget: Budget) -> bytes:
        find_proxy = self._proxies.find
        for _ in range(self._settings.max_redirects + 1):
            request = urls.prepare(url, self._headers)
            proxy = find_proxy(str(request.url))
            found = self._visit(request, wanted, budget, proxy)
            if isinstance(found, bytes):
                return found
            url = urls.join(str(request.url), found)
            find_proxy = self._proxies.find_redirected
        raise ItemFailure(
            Reason.TOO_MANY_REDIRECTS,
            f"more than {self._settings.max_redirects} redirects; the next: {url}",
        )

    def _visit(
        self,
        request: requests.PreparedRequest,
        wanted: _Wanted,
        budget: Budget,
        proxy: str | None,
    ) -> bytes | str:
        """What `_ask` returns, when it may be asked and its turn has come."""
        url, (host, port) = str(request.url), urls.place(request)
        if proxy is None:
            # Before the turn: what cannot be reached at all must not wait for it.
            self._resolver.find(host, port, budget.left_s())
        if wanted.is_image and not self._settings.ignore_robots:
            with budget.stopped():
                self._robots.check(url)
        with ExitStack() as stack:
            with budget.stopped():
                stack.enter_context(self._turns.turn(host))
            try:
                return self._try(request, wanted, budget, proxy)
            except TransientFailure as failure:
                self._turns.hold(host, min(failure.retry_after_s, MAX_WAIT_S))
                raise

    def _try(
        self,
        request: requests.PreparedRequest,
        wanted: _Wanted,
        budget: Budget,
        proxy: str | None,
    ) -> bytes | str:
        """What `_ask` returns; whatever a server may do becomes an ItemFailure."""
        left_s = budget.left_s()
        if left_s <= 0:
            raise ItemFailure(Reason.TIMEOUT, f"no answer within {budget.timeout_s:g} s")
        try:
            return self._ask(request, wanted, left_s, proxy)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise ItemFailure(Reason.TIMEOUT, f"not done within {budget.timeout_s:g} s") from error
        # A certificate stays as it is; asking again cannot help.
        except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
            raise ItemFailure(Reason.CONNECTION, f"TLS: {_cause(error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientFailure(Reason.CONNECTION, _cause(error)) from error
        # Headers that the libraries below parse without a guard.
        except ValueError as error:
            raise ItemFailure(Reason.CONNECTION, f"an unusable answer: {error}") from error

    def _ask(
        self,
        request: requests.PreparedRequest,
        wanted: _Wanted,
        left_s: float,
        proxy: str | None,
    ) -> bytes | str:
        """The body, or the address that a redirect gives."""
        # Through the adapter: a Session would add cookies, .netrc and proxies.
        response = self._adapter.send(
            request,
            stream=True,
            timeout=urllib3.Timeout(total=left_s),  # type: ignore[arg-type]
            proxies={"all": proxy} if proxy else None,
        )
        try:
            if response.status_code in REDIRECTS:
                return location(response)
            check_status(response)
            if wanted.is_image and not self._settings.ignore_noai:
                robots.check_noai(response.raw.headers.getlist("X-Robots-Tag"))
            return read_body(response.raw, wanted.max_bytes, cut=not wanted.is_image)
        finally:
            response.close()


_one_at_a_time = threading.Lock()


def process_fetcher(settings: FetchSettings) -> Fetcher:
    """The fetcher that all threads of this process share, and with it the turns at each host,
    the names that were looked up and the robots.txt that were read.
    """
    with _one_at_a_time:
        return _make_fetcher(settings)


@lru_cache(maxsize=1)
def _make_fetcher(settings: FetchSettings) -> Fetcher:
    return Fetcher(settings)


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
