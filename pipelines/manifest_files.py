"""Opens a manifest on any filesystem, packed by gzip or not, and bounds what comes out of it."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InvalidInput
from pipelines.listing import scheme

_PACKED = ".gz"
# Lists of URLs pack to a tenth, hardly ever below a fiftieth; gzip can do a thousandth.
_LARGEST_RATIO = 200
# Below this nothing is a bomb.
_SMALL_BYTES = 64 * 2**20
LONGEST_ROW = 16 * 2**20
"""Characters of a line of text, or of a value of JSON."""


def unpacked_name(where: str) -> str:
    """The name without `.gz`."""
    return where[: -len(_PACKED)] if where.lower().endswith(_PACKED) else where


@contextmanager
def open_manifest(where: str) -> Iterator[BinaryIO]:
    """The bytes of a manifest, unpacked, while the block runs.

    Raises:
      InvalidInput: it cannot be read, is cut short, or unpacks to hundreds of times its size;
        also from reads inside the block.
    """
    try:
        with _open(where) as file:
            if unpacked_name(where) == where:
                yield file
            else:
                yield io.BufferedReader(_Unpacked(where, file))
    except EOFError as error:
        raise InvalidInput(f"{where}: ends within its gzip data; make or copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInput(f"{where}: no gzip data ({error}); make or copy it again") from error
    except OSError as error:
        said = " ".join(str(error).split())
        raise InvalidInput(
            f"{where}: cannot be read ({said}), expected a manifest; check its path and who may "
            "read it"
        ) from error


@contextmanager
def open_lines(where: str, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a manifest of text, with their ends, while the block runs.

    Args:
      where: the manifest.
      newline: as for `open`: "\\n" where that alone ends a line, "" where a line end stays as
        it is.

    Raises:
      InvalidInput: as `open_manifest`, no UTF-8, or a line without an end.
    """
    with (
        open_manifest(where) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text,
    ):
        yield _lines(where, text)


@contextmanager
def _open(where: str) -> Iterator[Any]:
    if scheme(where):
        from pipelines import storage

        with storage.open_read(where) as file:
            yield file
    else:
        with Path(where).open("rb") as file:
            yield file


def _lines(where: str, text: io.TextIOWrapper) -> Iterator[str]:
    number = 1
    try:
        while line := text.readline(LONGEST_ROW):
            if len(line) == LONGEST_ROW:
                raise InvalidInput(
                    f"{where}, line {number}: over {LONGEST_ROW} characters; expected a "
                    "manifest with an image a line"
                )
            yield line
            number += 1
    except UnicodeDecodeError as error:
        # Decoding runs ahead of the lines.
        raise InvalidInput(
            f"{where}: no UTF-8 text at line {number} or soon after ({error.reason}); save it as "
            "UTF-8"
        ) from error


class _Unpacked(io.RawIOBase):
    """What gzip data hold; a bomb is refused before it fills anything."""

    def __init__(self, where: str, file: Any) -> None:
        self._where, self._packed = where, file
        self._plain = gzip.GzipFile(fileobj=file)
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._plain.read(len(buffer))
        self._bytes += len(data)
        if self._bytes > max(_SMALL_BYTES, _LARGEST_RATIO * self._packed.tell()):
            raise InvalidInput(
                f"{self._where}: unpacks to over {_LARGEST_RATIO} times its size; expected a "
                "manifest, unpack it yourself if it is one"
            )
        buffer[: len(data)] = data
        return len(data)
