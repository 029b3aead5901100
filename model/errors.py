"""Errors a user sees, and the closed list of reasons why one image or caption fails.

    CaptionbeamError            one line on stderr, no traceback
      InvalidInput              exit 2: arguments or inputs that cannot be used
        RecordsMismatch         records, vocabulary and checkpoint do not belong together
      CheckFailed               exit 1: the job ran, and a check or threshold failed
      NotRun                    exit 0: it was only asked whether the job can be built, and it can
    ItemFailure                 one image or caption; becomes a row, never ends a job

Messages say what was got, what was expected and what to do.
"""

from enum import StrEnum


class CaptionbeamError(Exception):
    """An error that ends a command with one line; `exit_code` is the process's status."""

    exit_code = 2


class InvalidInput(CaptionbeamError):
    """Arguments or inputs are unusable as they are."""


class RecordsMismatch(InvalidInput):
    """Two artefacts that must have the same digest or fingerprint do not."""


class CheckFailed(CaptionbeamError):
    """The job ran to its end and what it produced did not pass."""

    exit_code = 1


class NotRun(CaptionbeamError):
    """A dry run: the job was built and nothing was made."""

    exit_code = 0


class Reason(StrEnum):
    """Why an item has no result; the `reason` of a failure row and of every ledger."""

    # Reading a file.
    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    # The bytes are no image that we caption (model/image_bytes).
    EMPTY = "empty"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TRUNCATED = "truncated"
    DECODE = "decode"
    # Annotations (pipelines/coco).
    UNKNOWN_IMAGE = "unknown_image"
    INVALID_CAPTION = "invalid_caption"
    NO_VALID_CAPTION = "no_valid_caption"
    # The encoder's answer cannot be stored as float16.
    NOT_FINITE = "not_finite"
    # Fetching a URL (pipelines/fetch).
    INVALID_URL = "invalid_url"
    REFUSED_ADDRESS = "refused_address"
    DNS = "dns"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    # The site's robots.txt, or the answer's X-Robots-Tag, asks to be left alone.
    ROBOTS = "robots"
    NOAI = "noai"
    # The model refused this image although its neighbours passed.
    MODEL_ERROR = "model_error"


# Messages may quote what a server or a manifest says, and each becomes a row.
_LONGEST_MESSAGE = 500


class ItemFailure(Exception):
    """One item failed for a known reason.

    Attributes:
      reason: member of the closed list.
      message: got and expected, for a person; cut at 500 characters.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
