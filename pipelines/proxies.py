"""The proxy that the environment names for a URL: refused, or used when it is asked for."""

from collections.abc import Iterable
from contextlib import suppress

from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from model.errors import InvalidInput, ItemFailure
from pipelines.fetch_settings import FetchSettings
from pipelines.urls import prepare


def proxy_for(url: str, allowed: bool) -> str | None:
    """The proxy's URL, or None where the environment names none or no_proxy excepts the host.

    Raises:
      InvalidInput: there is one, and it is not allowed or speaks no HTTP.
    """
    proxies = get_environ_proxies(url)
    proxy = select_proxy(url, proxies) if proxies else None
    if not proxy:
        return None
    host = parse_url(url).host
    # The proxy's own URL may hold a password.
    if not allowed:
        raise InvalidInput(
            f"the environment names a proxy for {host} (http_proxy, https_proxy or all_proxy), "
            "behind which addresses cannot be checked; expected none: unset it, name the host in "
            "no_proxy, or take --allow_proxy"
        )
    try:
        scheme = parse_url(proxy).scheme or "http"
    except LocationParseError:
        scheme = "nothing"
    if scheme not in ("http", "https"):
        raise InvalidInput(
            f"the environment's proxy for {host} speaks {scheme}; expected http:// or https://, "
            "or none"
        )
    return proxy


def check_proxies(sources: Iterable[str], settings: FetchSettings) -> None:
    """Raises InvalidInput, as `proxy_for`, for the first URL whose proxy cannot be used."""
    if get_environ_proxies("http://any.invalid/") or get_environ_proxies("https://any.invalid/"):
        # One for each scheme and host.
        sites = {tuple(url.split("/", 3)[:3]): url for url in sources}
        for url in sites.values():
            # What is no URL fails by itself, later.
            with suppress(ItemFailure):
                proxy_for(str(prepare(url, {}).url), settings.allow_proxy)
