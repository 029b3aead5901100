"""The proxy that the environment names for a URL: refused, or used when it is asked for."""

from collections.abc import Iterable
from contextlib import suppress

from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.urls import prepare


class Proxies:
    """The proxies of the environment, as it is when this is made."""

    def __init__(self, allowed: bool) -> None:
        """Args:
        allowed: whether they may be used.
        """
        self._allowed = allowed
        schemes = ("http", "https")
        self._are_there = any(get_environ_proxies(f"{scheme}://any.invalid/") for scheme in schemes)

    def find(self, url: str) -> str | None:
        """The URL of a URL's proxy; None where there is none, or no_proxy excepts the host.

        Raises:
          InvalidInput: there is one, and it is not allowed or speaks no HTTP.
        """
        # To look is slower than all else that a request needs.
        if not self._are_there:
            return None
        proxy = select_proxy(url, get_environ_proxies(url))
        if not proxy:
            return None
        host = parse_url(url).host
        # The proxy's own URL may hold a password.
        if not self._allowed:
            raise InvalidInput(
                f"the environment names a proxy for {host} (http_proxy, https_proxy or all_proxy), "
                "behind which addresses cannot be checked; expected none: unset it, name the host "
                "in no_proxy, or take --allow_proxy"
            )
        try:
            scheme = parse_url(proxy).scheme or "http"
        except LocationParseError:
            scheme = "nothing"
        if scheme not in ("http", "https"):
            raise InvalidInput(
                f"the environment's proxy for {host} speaks {scheme}; expected http:// or "
                "https://; correct it, or name the host in no_proxy"
            )
        return proxy

    def find_redirected(self, url: str) -> str | None:
        """What `find` returns, of a URL that a server chose: no server may end the job.

        Raises:
          ItemFailure: REFUSED_ADDRESS, where `find` raises InvalidInput.
        """
        try:
            return self.find(url)
        except InvalidInput as error:
            raise ItemFailure(Reason.REFUSED_ADDRESS, f"redirected, and {error}") from error

    def check(self, urls: Iterable[str]) -> None:
        """Raises InvalidInput, as `find`, for one of the URLs whose proxy cannot be used."""
        if not self._are_there:
            return
        # One for each scheme and host.
        sites = {tuple(url.split("/", 3)[:3]): url for url in urls}
        for url in sites.values():
            # What is no URL fails by itself, later.
            with suppress(ItemFailure):
                self.find(str(prepare(url, {}).url))
