"""URLs → requests; what is no http or https URL is its item's failure."""

import re
from collections.abc import Mapping
from urllib.parse import urljoin

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from model.errors import ItemFailure, Reason

_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LAST_PORT = 65_535
# What `requests` leaves as it is, to the letter; to find that out takes it longer than all else
# that we do for a request. A path that begins a part with a dot may be shortened.
_PLAIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9][a-z0-9.-]*)(:(?P<port>[1-9][0-9]{0,4}))?"
    r"(/(?!\.)[A-Za-z0-9_.~-]*)+(\?[A-Za-z0-9_.~=&-]+)?"
)


def prepare(url: str, headers: Mapping[str, str]) -> requests.PreparedRequest:
    """A GET request; raises ItemFailure INVALID_URL."""
    # `urljoin` drops tabs and line ends silently, and a server would see another URL.
    if _CONTROL.search(url):
        raise ItemFailure(Reason.INVALID_URL, f"{url!r} has control characters")
    if _plain_place(url) is not None:
        request = requests.PreparedRequest()
        request.method, request.url = "GET", url
        request.headers = CaseInsensitiveDict(headers)
        return request
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
    url = str(request.url)
    if (plain := _plain_place(url)) is not None:
        return plain
    parsed = urllib3.util.parse_url(url)
    return str(parsed.host).strip("[]"), parsed.port or _PORTS[str(parsed.scheme)]


def join(base: str, location: str) -> str:
    """Where a redirect leads; raises ItemFailure INVALID_URL."""
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise ItemFailure(Reason.INVALID_URL, f"redirected to {location!r}: {error}") from error


def _plain_place(url: str) -> tuple[str, int] | None:
    """Host and port of a plain URL; None of another."""
    found = _PLAIN.fullmatch(url)
    if found is None:
        return None
    port = int(found["port"] or _PORTS[found["scheme"]])
    return (found["host"], port) if port <= _LAST_PORT else None
