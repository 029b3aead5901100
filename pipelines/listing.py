"""What all listings of bulk captioning share: items, and kinds of names."""

import re
from pathlib import PurePosixPath
from typing import Any, NamedTuple

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
)
# Field of an item: SIZE-REST, where its listing tells; what changes when the object does.
STATE = "state"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Found(NamedTuple):
    """An item as an input has it; its key may come again (pipelines/keys).

    Attributes:
      item: "key" and "source", and where known "state" (what changes when the object does),
        "columns" (of its manifest), or where in a tar it is (pipelines/image_files).
      once: of a key that must come once, the place it stands at.
    """

    item: dict[str, Any]
    once: str | None = None


def make_item(key: str, source: str, state: str | None = None) -> dict[str, Any]:
    """An item; bytes of a file name that are no UTF-8 become escapes."""
    item = {"key": encodable(key), "source": encodable(source)}
    return item if state is None else {**item, STATE: state}


def encodable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def scheme(source: str) -> str | None:
    """Tells `https` of `https://…`; None of a local path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match else None


def is_image(name: str) -> bool:
    """Whether a name ends as an image's."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
