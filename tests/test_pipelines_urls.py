"""The short way to a request leads to the one that `requests` makes."""

import random

import pytest
import requests

from model.errors import ItemFailure
from pipelines import urls

HEADERS = {"User-Agent": "captionbeam/1", "Accept": "image/*"}
PARTS = (
    "a",
    "B.jpg",
    "..",
    ".",
    ".hidden",
    "%41",
    "a%2fb",
    "ä",
    "a b",
    "~x_-",
    "a;b",
    "",
    "a..",
    "@",
)
HOSTS = (
    *("example.org", "EXAMPLE.org", "127.0.0.1", "a-b.c", "[::1]", "bücher.example", "*.x", ".x"),
    *("a..b", "x.", "1", "user@h", "xn--a", "-a", "a_b", "127.1", "0x7f.1"),
)
PORTS = ("", ":80", ":8080", ":080", ":0", ":65535", ":65536", ":99999", ":", ":x")
QUERIES = ("", "?", "?a=1&b=2", "?a=/../b", "?ä", "?a#f", "#f", "?a=%20")


def expected(url: str) -> tuple[str, dict[str, str]] | None:
    """What `requests` makes of it; None of what it refuses."""
    try:
        made = requests.Request("GET", url, headers=HEADERS).prepare()
    except (requests.RequestException, ValueError):
        return None
    return str(made.url), dict(made.headers)


def random_urls(count: int) -> list[str]:
    generator = random.Random(0)
    return [
        generator.choice(("http://", "https://", "HTTP://", "ftp://"))
        + generator.choice(HOSTS)
        + generator.choice(PORTS)
        + "".join("/" + generator.choice(PARTS) for _ in range(generator.randrange(4)))
        + generator.choice(QUERIES)
        for _ in range(count)
    ]


def test_the_request_is_the_one_of_requests() -> None:
    plain = 0
    for url in random_urls(3000):
        try:
            request = urls.prepare(url, HEADERS)
        except ItemFailure:
            continue
        assert (request.url, dict(request.headers)) == expected(url), url
        assert (request.method, request.body) == ("GET", None)
        plain += request.url == url
    assert plain > 50


@pytest.mark.parametrize(
    ("host", "port"), [("h.example", ""), ("h.example", ":8080"), ("10.0.0.1", ":65535")]
)
def test_a_plain_url_asks_nobody_for_its_parts(
    host: str, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib3.util.parse_url", None)
    request = urls.prepare(f"https://{host}{port}/a/b_1.jpg?x=1&y", HEADERS)
    assert urls.place(request) == (host, int(port[1:] or 443))


@pytest.mark.parametrize("url", ["http://h:65536/a", "http://h:99999/a", "http://h/\x7f"])
def test_what_looks_plain_and_is_no_url_fails(url: str) -> None:
    with pytest.raises(ItemFailure):
        urls.prepare(url, HEADERS)
