"""How rows of captions become the bytes of a shard's file, and those bytes rows again.

The same rows always have the same bytes, and `read` gives back the rows that were added.
"""

import csv
import io
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from pipelines import storage
from pipelines.caption_rows import Kind
from pipelines.output_settings import CSV, JSON_LINES, PARQUET
from pipelines.parquet_format import ParquetEncoder, read_parquet_rows

Row: TypeAlias = Mapping[str, Any]
Fields: TypeAlias = Sequence[tuple[str, Kind]]
# Python's limit on a cell is the process's.
_READING = threading.Lock()


class Encoder(Protocol):
    """Bytes of one file, in order: what `begin` returns, each `add`, and `end`."""

    def begin(self) -> bytes:
        """What stands before the rows."""

    def add(self, row: Row) -> bytes:
        """The next row, as far as it can be written by now."""

    def end(self) -> bytes:
        """What is left."""


@dataclass(frozen=True)
class RowFormat:
    """A format with the fields that its rows have.

    Attributes:
      name: of `pipelines.output_settings.FORMATS`.
      fields: names and kinds, in order; a table has them all as its columns, JSON lines what a row
        has.
    """

    name: str = JSON_LINES
    fields: tuple[tuple[str, Kind], ...] = ()

    def encoder(self) -> Encoder:
        """For one file."""
        return _CODECS[self.name].encoder(self.fields)

    def read(self, data: bytes) -> list[dict[str, Any]]:
        """The rows of a whole file; raises ValueError where it is none."""
        return _CODECS[self.name].read(data, self.fields)


class JsonLinesEncoder:
    """An object a line."""

    def __init__(self, fields: Fields) -> None:
        """Needs no fields."""

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def add(self, row: Row) -> bytes:
        """The line."""
        return storage.json_line(row)

    def end(self) -> bytes:
        """Nothing."""
        return b""


def read_json_lines(data: bytes) -> list[dict[str, Any]]:
    """The rows of JSON lines; raises ValueError."""
    return [json.loads(line) for line in data.splitlines() if line]


class CsvEncoder:
    """RFC 4180 in UTF-8 with a header; what is no text is JSON, and an empty cell no value."""

    def __init__(self, fields: Fields) -> None:
        """Keeps the columns."""
        self._fields = fields

    def begin(self) -> bytes:
        """The header."""
        return _csv_line([name for name, _ in self._fields])

    def add(self, row: Row) -> bytes:
        """The line, or lines where a text has some."""
        return _csv_line([_to_cell(row, name, kind) for name, kind in self._fields])

    def end(self) -> bytes:
        """Nothing."""
        return b""


def read_csv(data: bytes, fields: Fields) -> list[dict[str, Any]]:
    """The rows of a file that CsvEncoder made; raises ValueError."""
    text = io.StringIO(data.decode(), newline="")
    with _READING:
        before = csv.field_size_limit(sys.maxsize)
        try:
            header, *lines = list(csv.reader(text, strict=True)) or [[]]
        except csv.Error as error:
            raise ValueError(str(error)) from error
        finally:
            csv.field_size_limit(before)
    if header != [name for name, _ in fields]:
        raise ValueError(f"columns {header}, expected {[name for name, _ in fields]}")
    return [
        {
            name: cell if kind is Kind.TEXT else json.loads(cell)
            for (name, kind), cell in zip(fields, line, strict=True)
            if cell or kind is Kind.TEXT
        }
        for line in lines
    ]


class _Codec(NamedTuple):
    encoder: Callable[[Fields], Encoder]
    read: Callable[[bytes, Fields], list[dict[str, Any]]]


_CODECS = {
    JSON_LINES: _Codec(JsonLinesEncoder, lambda data, _: read_json_lines(data)),
    CSV: _Codec(CsvEncoder, read_csv),
    PARQUET: _Codec(ParquetEncoder, read_parquet_rows),
}


def _to_cell(row: Row, name: str, kind: Kind) -> str:
    if kind is Kind.TEXT:
        return str(row[name])
    return storage.json_text(row[name]) if name in row else ""


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()
