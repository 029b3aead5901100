"""Reads one image of any Beam filesystem; whatever goes wrong is that image's failure."""

import stat
from collections.abc import Callable
from pathlib import Path

from model.errors import ItemFailure, Reason
from model.image_bytes import Limits
from pipelines import storage
from pipelines.jobs import Item
from pipelines.listing import STATE
from pipelines.tar_files import read_member

# Fields of an item whose image is in a tar file: [path, offset, size], or why it is in none.
TAR, MISSING = "tar", "missing"
# Field of an item that stands for what a damaged tar may have held: what is wrong with the tar.
DAMAGED = "damaged"


def listed_bytes(item: Item) -> int | None:
    """Size of an item's image as its listing tells it; None where nobody has looked."""
    if MISSING in item or DAMAGED in item:
        return None
    if TAR in item:
        return int(item[TAR][2])
    state = item.get(STATE)
    return None if state is None else int(state.partition("-")[0])


def read_item(item: Item) -> bytes:
    """The bytes of an item's image, from a file or a tar; over the cap one byte more than that.

    Raises:
      ItemFailure: MISSING_FILE, UNREADABLE or TRUNCATED.
    """
    if MISSING in item:
        raise ItemFailure(Reason.MISSING_FILE, item[MISSING])
    if DAMAGED in item:
        raise ItemFailure(Reason.TRUNCATED, item[DAMAGED])
    if TAR not in item:
        return read_image_file(item["source"])
    path, offset, size = item[TAR]
    return _read(path, lambda: read_member(path, offset, size, Limits().max_bytes + 1))


def read_image_file(path: str) -> bytes:
    """The bytes of a file, or of a file over the cap one byte more than the cap.

    Raises:
      ItemFailure: MISSING_FILE or UNREADABLE.
    """
    # The byte over the cap tells canonicalise; the rest of a huge file stays unread.
    return _read(path, lambda: storage.read_bytes(path, Limits().max_bytes + 1))


def _read(path: str, read: Callable[[], bytes]) -> bytes:
    try:
        if _is_pipe(path):
            # Opening it would wait for ever.
            raise ItemFailure(Reason.UNREADABLE, "a pipe, expected a file")
        return read()
    except ItemFailure:
        raise
    # Each filesystem's client raises errors of its own.
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not _may_exist(path):
            raise ItemFailure(Reason.MISSING_FILE, "no such file, expected an image") from error
        raise ItemFailure(Reason.UNREADABLE, f"{type(error).__name__}: {error}") from error


def _is_pipe(path: str) -> bool:
    return "://" not in path and stat.S_ISFIFO(Path(path).stat().st_mode)


def _may_exist(path: str) -> bool:
    try:
        return storage.exists(path)
    # What cannot even be looked for is not known to be missing.
    except Exception:
        return True
