"""Reads one image file of any Beam filesystem; whatever goes wrong is that image's failure."""

import stat
from pathlib import Path

from model.errors import ItemFailure, Reason
from model.image_bytes import Limits
from pipelines import storage


def read_image_file(path: str) -> bytes:
    """The bytes of a file, or of a file over the cap one byte more than the cap.

    Raises:
      ItemFailure: MISSING_FILE or UNREADABLE.
    """
    try:
        if _is_pipe(path):
            # Opening it would wait for ever.
            raise ItemFailure(Reason.UNREADABLE, "a pipe, expected a file")
        # The byte over the cap tells canonicalise; the rest of a huge file stays unread.
        return storage.read_bytes(path, Limits().max_bytes + 1)
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
