"""URLs → requests; what is no http or https URL is its item's failure."""

from collections.abc import Mapping
from urllib.parse import urljoin

import requests
import urllib3

from model.errors import ItemFailure, Reason

_PORTS = {"http": 80, "https": 443}


def prepare(url: str, headers: Mapping[str, str]) -> requests.PreparedRequest:
    """A GET request; raises ItemFailure INVALID_URL."""
    # `urljoin` drops tabs and line ends silently, and a server would see another URL.
    if any(character < " " or character == "\x7f" for character in url):
        raise ItemFailure(Reason.INVALID_URL, f"{url!r} has control characters")
    try:
        request = requests.Request("GET", url, headers=headers).prepare()
        parsed = urllib3.util.parse_url(str(request.url))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise ItemFailure(Reason.INVALID_URL, f"{url!r}: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.host:
        raise ItemFailure(Reason.INVALID_URL, f"{url!r}: expected http://… or https://…")
    if parsed.auth is not None:
        raise ItemFailure(Reason.INVALID_URL, "has a user name; credentials are never sent")
    return request


def place(request: requests.PreparedRequest) -> tuple[str, int]:
    """Host, without brackets, and port of a request that `prepare` made."""
    parsed = urllib3.util.parse_url(str(request.url))
    return str(parsed.host).strip("[]"), parsed.port or _PORTS[str(parsed.scheme)]


def join(base: str, location: str) -> str:
    """Where a redirect leads; raises ItemFailure INVALID_URL."""
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise ItemFailure(Reason.INVALID_URL, f"redirected to {location!r}: {error}") from error
