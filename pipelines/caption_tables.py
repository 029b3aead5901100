"""Annotation files with a caption a line: token files, CSV, TSV and JSONL.

    Flickr8k.token.txt        1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress .
    captions.csv              image,caption[,image_id]; TSV the same; `|` as in Flickr30k's
    captions.jsonl            {"image": "1.jpg", "caption": "a dog"}; a list of captions, too

An annotation's id is its line number. Rows of an image may stand anywhere; it has the place
of its first one.
"""

import csv
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from model.errors import InvalidInput
from pipelines.annotations import (
    INT64,
    AnnotatedImage,
    Annotations,
    Columns,
    check_field,
    check_unique,
    id_of_name,
    open_text,
    shallow,
)

TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
_IMAGE_ID = "image_id"
_EXPECTED_TOKENS = "a token file with lines NAME#NUMBER<TAB>CAPTION"
_EXPECTED_TABLE = "a table with a header such as image,caption"
_EXPECTED_JSONL = 'a JSON object a line, such as {"image": "1.jpg", "caption": "a dog"}'


def read_tokens(path: str, columns: Columns) -> Annotations:
    """Read a token file as Flickr8k and Flickr30k have it.

    Raises:
      InvalidInput: missing, or a line of another form; names the line.
    """
    del columns
    images = _Images(path)
    with open_text(path, _EXPECTED_TOKENS) as file:
        for number, line in enumerate(file, 1):
            row = TOKEN_LINE.fullmatch(line.rstrip("\r\n"))
            if row is not None:
                images.add(number, row["image"].strip(), [row["caption"]])
            elif line.strip():
                raise InvalidInput(
                    f"{path}, line {number}: {_start(line)}, expected NAME#NUMBER<TAB>CAPTION"
                )
    return images.finish(_EXPECTED_TOKENS)


def read_table(path: str, columns: Columns) -> Annotations:
    """Read CSV or TSV; the header says what separates its columns: a tab, `|` or a comma.

    Raises:
      InvalidInput: missing, without the columns, or a row that cannot be used; names the line.
    """
    images = _Images(path)
    with open_text(path, _EXPECTED_TABLE, newline="") as file:
        header = file.readline()
        delimiter = next(mark for mark in ("\t", "|", ",") if mark in header or mark == ",")
        # Flickr30k's results.csv puts blanks behind its bars, and quotes mean themselves there.
        bars = delimiter == "|"
        rows = csv.reader(
            itertools.chain([header], file),
            delimiter=delimiter,
            strict=not bars,
            quoting=csv.QUOTE_NONE if bars else csv.QUOTE_MINIMAL,
        )
        try:
            names = [name.strip() for name in next(rows, [])]
            _check_columns(path, names, columns)
            for cells in rows:
                if cells:
                    row = _row(f"{path}, line {rows.line_num}", names, cells)
                    caption = row.get(columns.caption)
                    captions = [caption.strip() if bars and caption else caption]
                    images.add_row(rows.line_num, row, captions, columns)
        except csv.Error as error:
            raise InvalidInput(f"{path}, line {rows.line_num}: {error}") from error
    return images.finish(_EXPECTED_TABLE)


def read_json_lines(path: str, columns: Columns) -> Annotations:
    """Read JSONL; a caption may be a list of captions.

    Raises:
      InvalidInput: missing, or a line that is no such object; names the line.
    """
    images = _Images(path)
    with open_text(path, _EXPECTED_JSONL) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            # Brackets nested by the thousand end the parser with the second.
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise InvalidInput(f"{path}, line {number}: {kind}, expected {_EXPECTED_JSONL}")
            caption = row.get(columns.caption)
            images.add_row(
                number, row, caption if isinstance(caption, list) else [caption], columns
            )
    return images.finish(_EXPECTED_JSONL)


def _start(line: str) -> str:
    return ascii(line.strip()[:40])


def _check_columns(path: str, names: Sequence[str], columns: Columns) -> None:
    for field in fields(columns):
        flag, name = f"{field.name}_column", getattr(columns, field.name)
        if name is not None and name not in names:
            raise InvalidInput(
                f"{path}: no column {name!r}; its header has {', '.join(names) or 'none'}; name "
                f"one with --{flag}"
            )
    check_unique(names, f"{path}: column")


def _row(where: str, names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """A row by column; one that ends early has no caption, which is then a failure of its own."""
    if len(cells) > len(names):
        raise InvalidInput(
            f"{where}: {len(cells)} cells, expected at most {len(names)} as in the header; quote "
            "a caption that holds the delimiter"
        )
    return dict(zip(names, cells, strict=False))


class _Images:
    """Gathers an image's captions from its rows."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._images: dict[str, AnnotatedImage] = {}

    def add_row(
        self, line: int, row: Mapping[str, Any], captions: Sequence[object], columns: Columns
    ) -> None:
        """Add the row of a table."""
        where = f"{self._path}, line {line}"
        check_field(row, columns.image, str, where)
        name = row[columns.image].strip()
        if not name:
            raise InvalidInput(f"{where}: {columns.image} is blank, expected a file name")
        self.add(line, name, captions, _image_id(row, columns, where))

    def add(
        self, line: int, name: str, captions: Sequence[object], image_id: int | None = None
    ) -> None:
        """Add captions to an image; without an id of the source it has that of its name."""
        image_id = id_of_name(name) if image_id is None else image_id
        image = self._images.setdefault(name, AnnotatedImage(name, image_id, []))
        if image.image_id != image_id:
            raise InvalidInput(
                f"{self._path}, line {line}: image_id {image_id} of {name}, expected "
                f"{image.image_id} as in a line before"
            )
        image.captions.extend((line, shallow(caption)) for caption in captions)

    def finish(self, expected: str) -> Annotations:
        """All images; InvalidInput when there is none, or an id belongs to two."""
        images = list(self._images.values())
        if not images:
            raise InvalidInput(f"{self._path}: no caption in it, expected {expected}")
        check_unique((image.image_id for image in images), f"{self._path}: image_id")
        return Annotations(images, [])


def _image_id(row: Mapping[str, Any], columns: Columns, where: str) -> int | None:
    """The id of a row, or None where the source has none."""
    column = columns.image_id or _IMAGE_ID
    if column not in row and columns.image_id is None:
        return None
    value = row.get(column)
    # A cell of CSV is text.
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value):
        value = int(value)
    if type(value) is not int or value not in INT64:
        raise InvalidInput(f"{where}: {column} is {shallow(value)!a}, expected an integer")
    return value
