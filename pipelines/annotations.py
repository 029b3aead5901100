"""What every annotation file is read into, and the checks that all formats share.

A reader (pipelines/annotation_formats has the table) turns one file into `Annotations`. Ids
stay those of the source; where a source has none, `id_of_name` makes one of the image's name.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from model.errors import InvalidInput
from pipelines import storage

INT64 = range(-(2**63), 2**63)
# What a float64 holds exactly, since JavaScript and spreadsheets read ids as such.
_LARGEST_ID = 2**53 - 1
# COCO's 2014 names say the year's split, its 2017 names are the id alone.
COCO_NAME = re.compile(r"(?P<prefix>COCO_(?:train|val|test)20\d\d_)?(?P<id>\d{12})\.jpg")


@dataclass(frozen=True)
class Columns:
    """Where a table (CSV, TSV, JSONL) keeps what.

    Attributes:
      image: column of the image's file name.
      caption: column of the caption.
      image_id: column of the image's id; None is `image_id` where a table has that.
    """

    image: str = "image"
    caption: str = "caption"
    image_id: str | None = None


class AnnotatedImage(NamedTuple):
    """One image of an annotation file.

    Attributes:
      name: file name as the source has it.
      image_id: id in the source, or `id_of_name`.
      captions: (annotation id, caption) in the file's order; a caption may be any JSON value.
      path: where the file lies below the directory of the images, if not at `name`.
      split: the split that the file puts it in, if it does.
    """

    name: str
    image_id: int
    captions: list[tuple[int, object]]
    path: str = ""
    split: str | None = None


class Annotations(NamedTuple):
    """What an annotation file holds.

    Attributes:
      images: in the file's order.
      orphans: (annotation id, image id) of annotations whose image the file does not have.
    """

    images: list[AnnotatedImage]
    orphans: list[tuple[int, int]]


Reader = Callable[[str, Columns], Annotations]
"""Reads one annotation file; raises InvalidInput that names file and place."""


def id_of_name(name: str) -> int:
    """A positive id below 2**53 from the SHA-256 of an image's name; the same in every run."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _LARGEST_ID + 1


def photograph_of(name: str) -> str:
    """The base name of an image; of COCO's names of a photograph, that of 2017."""
    base = name.rpartition("/")[2]
    coco = COCO_NAME.fullmatch(base)
    return base.removeprefix(coco["prefix"] or "") if coco else base


@contextmanager
def open_text(path: str, expected: str, newline: str = "\n") -> Iterator[TextIO]:
    """Open a UTF-8 file of any Beam filesystem; InvalidInput says what was expected of it."""
    try:
        with storage.open_read(path) as file:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        line = _line_of_bad_text(path)
        raise InvalidInput(
            f"{path}, line {line}: no UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}), expected {expected}") from error


def _line_of_bad_text(path: str) -> int:
    """Decoding runs ahead of the lines, so only the bytes tell."""
    data = storage.read_bytes(path)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1


def shallow(caption: object) -> object:
    """A caption that is safe to write again: of what is no sentence only the type is told."""
    return type(caption)() if isinstance(caption, list | dict) else caption


def check_field(entry: Any, field: str, kind: type, where: str) -> None:
    """Raise InvalidInput unless a field is a 64-bit integer, or text that UTF-8 can hold."""
    value: Any = entry.get(field) if isinstance(entry, dict) else None
    # bool is an int to Python, and a record stores ids in 64 bits.
    valid = type(value) is kind and (value in INT64 if kind is int else is_unicode(str(value)))
    if not valid or value == "":
        expected = "an integer" if kind is int else "a file name"
        raise InvalidInput(f"{where}: {field} is {value!a}, expected {expected}")


def check_unique(values: Iterable[Any], what: str) -> None:
    """Raise InvalidInput naming the first value that is there twice."""
    seen: set[Any] = set()
    again: set[Any] = set()
    for value in values:
        (again if value in seen else seen).add(value)
    if twice := sorted(again):
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise InvalidInput(f"{what} {twice[0]!r}{more} twice, expected each once")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it; JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
