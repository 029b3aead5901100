"""The rows of a manifest, whatever its format, one after the other.

.txt       one URL or path a line
.csv .tsv  a table with a header
.jsonl     an object a line
.json      a list of objects or of URLs, or COCO's {"images": [{"id", "file_name", …}]}
.parquet   a table

each also packed: .gz.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from model.errors import InvalidInput
from pipelines.columns import DEFAULT_URL_COLUMN, ColumnCheck, Columns
from pipelines.manifest_files import LONGEST_ROW, open_lines, open_manifest, unpacked_name


class Row(NamedTuple):
    """A row of a manifest.

    Attributes:
      place: "line 7", "element 7" or "row 7"; from 1.
      cells: values by column.
      columns: which of them hold what.
    """

    place: str
    cells: Mapping[str, Any]
    columns: Columns


_Reader = Callable[[str, Columns, ColumnCheck], Iterator[Row]]
# Where COCO's image entries say where the image is; the second is a name beside the manifest.
_COCO_URLS = ("coco_url", "file_name")


def manifest_kind(where: str) -> str | None:
    """The suffix that says a manifest's format, without .gz; None of what is no manifest."""
    suffix = PurePosixPath(unpacked_name(where)).suffix.lower()
    return suffix if suffix in _READERS else None


def read_rows(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    """The rows; blank lines are none.

    Args:
      where: path of the manifest, on any Beam filesystem.
      columns: which columns hold what.
      check: is told the columns of a table that has a header, before its first row.

    Raises:
      InvalidInput: it cannot be read as what it is.
    """
    return _READERS[manifest_kind(where) or ""](where, columns, check)


def _text(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    del check
    _check_no_columns(f"{where}: a .txt manifest has no columns", columns)
    with open_lines(where, "\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Row(f"line {number}", {columns.url: line.strip()}, columns)


def _check_no_columns(what: str, columns: Columns) -> None:
    given = ("--id_column", columns.id), ("--carry_columns", " ".join(columns.carry or ()))
    for flag, name in given:
        if name:
            raise InvalidInput(f"{what}, so no {flag} {name}; take .csv, .tsv, .jsonl or .parquet")


def _table(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    delimiter = "\t" if manifest_kind(where) == ".tsv" else ","
    with open_lines(where, "") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            if names := reader.fieldnames:
                check.see_header(names)
            for row in reader:
                if None in row:
                    raise InvalidInput(
                        f"{where}, line {reader.line_num}: more cells than the header has columns"
                    )
                yield Row(f"line {reader.line_num}", row, columns)
        except csv.Error as error:
            raise InvalidInput(f"{where}, line {reader.line_num}: {error}") from error


def _json_lines(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    del check
    with open_lines(where, "\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            # Brackets nested by the thousand end the parser with the second.
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{where}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise InvalidInput(
                    f"{where}, line {number}: {type(row).__name__}; expected an object a line, "
                    f'such as {{"{DEFAULT_URL_COLUMN}": "https://…"}}'
                )
            yield Row(f"line {number}", row, columns)


def _json(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    del check
    from pipelines.json_stream import read_elements

    number = 0
    with open_manifest(where) as file:
        try:
            for in_object, element in read_elements(file, "images", LONGEST_ROW):
                number += 1
                if isinstance(element, str):
                    _check_no_columns(f"{where}: a list of URLs has no columns", columns)
                    element = {columns.url: element}
                elif not isinstance(element, dict):
                    raise InvalidInput(
                        f"{where}, element {number}: {type(element).__name__}; expected a URL, or "
                        f'an object such as {{"{DEFAULT_URL_COLUMN}": "https://…"}}'
                    )
                row = Row(f"element {number}", element, columns)
                yield _coco_row(row) if in_object else row
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InvalidInput(
                f"{where}, after element {number}: no JSON ({said}); expected a list of objects "
                'or URLs, or an object with a list "images"'
            ) from error


def _coco_row(row: Row) -> Row:
    """An entry of COCO's images: its key is the id, and its image where COCO says, if at all."""
    place, cells, columns = row
    if columns.url == DEFAULT_URL_COLUMN and columns.url not in cells:
        for name in _COCO_URLS:
            if cells.get(name):
                cells = {**cells, columns.url: cells[name]}
                break
    return Row(place, cells, replace(columns, id=columns.id or "id"))


def _parquet(where: str, columns: Columns, check: ColumnCheck) -> Iterator[Row]:
    from pipelines.parquet_rows import read_parquet

    for number, cells in enumerate(read_parquet(where, columns, check), 1):
        yield Row(f"row {number}", cells, columns)


_READERS: dict[str, _Reader] = {
    ".txt": _text,
    ".csv": _table,
    ".tsv": _table,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
MANIFEST_SUFFIXES = tuple(_READERS)
# A .txt manifest has lines alone.
TABLE_SUFFIXES = MANIFEST_SUFFIXES[1:]
