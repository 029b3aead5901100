"""What an HTTP answer says: a body, an address, a failure, or a failure that may pass."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import requests
import urllib3

from model.errors import ItemFailure, Reason

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 2**10
_TOO_MANY_REQUESTS = 429
# Those that unpack in pieces of bounded size, whatever is installed beside us; old Brotli does not.
_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})


class TransientFailure(ItemFailure):
    """May pass when asked again.

    Attributes:
      retry_after_s: seconds for which the server asks to be left alone.
    """

    def __init__(self, reason: Reason, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s


def check_status(response: requests.Response) -> None:
    """Raises ItemFailure for anything but 2xx."""
    status = response.status_code
    said = f"{status} {response.reason}"
    if 200 <= status < 300:
        return
    if status == _TOO_MANY_REQUESTS or 500 <= status < 600:
        reason = Reason.HTTP_429 if status == _TOO_MANY_REQUESTS else Reason.HTTP_5XX
        after_s = retry_after_s(response.headers)
        raise TransientFailure(reason, f"{said}{_asked(after_s)}", after_s)
    if 400 <= status < 500:
        raise ItemFailure(Reason.HTTP_4XX, said)
    raise ItemFailure(Reason.CONNECTION, f"{said}: expected 200")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The seconds of `Retry-After`, which gives them or a date; 0 where it says nothing."""
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        # As a float, since `int` refuses thousands of digits; they become infinity.
        return float(said)
    then_s = _seconds(said)
    if then_s is None:
        return 0.0
    # By the server's clock, where it tells.
    now_s = _seconds(headers.get("Date", ""))
    return max(0.0, then_s - (time.time() if now_s is None else now_s))


def location(response: requests.Response) -> str:
    """The address that a redirect gives; raises ItemFailure INVALID_URL where it gives none."""
    # Header bytes reach us as Latin-1; addresses are UTF-8.
    given = response.headers.get("Location", "").encode("latin-1").decode("utf-8", "replace")
    if not given:
        raise ItemFailure(Reason.INVALID_URL, f"{response.status_code} without a Location")
    return given


def read_body(raw: urllib3.HTTPResponse, max_bytes: int, *, cut: bool = False) -> bytes:
    """The body of an answer, decompressed.

    Args:
      raw: the answer.
      max_bytes: the most that is read, and held.
      cut: whether a longer body is cut there; else it is a failure.

    Raises:
      ItemFailure: TOO_MANY_BYTES or EMPTY; CONNECTION, an encoding that is not read.
    """
    _check_encoding(raw.headers.get("Content-Encoding", ""))
    if not cut and _announced_bytes(raw) > max_bytes:
        raise _too_many_bytes(max_bytes)
    body = bytearray()
    for chunk in raw.stream(_CHUNK_BYTES, decode_content=True):
        body += chunk
        if len(body) > max_bytes:
            if cut:
                return bytes(body[:max_bytes])
            raise _too_many_bytes(max_bytes)
    if not body:
        raise ItemFailure(Reason.EMPTY, "a body of 0 bytes, expected an image")
    return bytes(body)


def _check_encoding(encodings: str) -> None:
    for encoding in encodings.split(","):
        if encoding.strip().lower() not in _ENCODINGS:
            raise ItemFailure(
                Reason.CONNECTION,
                f"Content-Encoding: {encoding.strip()}, an encoding nobody asked for; expected "
                "none, gzip or deflate",
            )


def _announced_bytes(raw: urllib3.HTTPResponse) -> float:
    """The size that the headers give; 0 when they give none."""
    announced = raw.headers.get("Content-Length", "")
    return float(announced) if announced.isascii() and announced.isdecimal() else 0


def _too_many_bytes(max_bytes: int) -> ItemFailure:
    return ItemFailure(
        Reason.TOO_MANY_BYTES, f"over {max_bytes} bytes, expected at most {max_bytes}"
    )


def _asked(after_s: float) -> str:
    return f"; Retry-After: {after_s:g} s" if after_s else ""


def _seconds(date: str) -> float | None:
    """An HTTP date as Unix time; None of what is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
