"""Columns of a manifest: which hold what, and the values that are carried through to the rows."""

import base64
import datetime
import decimal
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import InvalidInput
from pipelines.listing import encodable
from pipelines.wording import some_of

DEFAULT_URL_COLUMN = "url"
CARRIED = "columns"
"""Field of an item and of its row: the other columns, by name."""
# Deeper than any table's cell, and far from where Python's JSON gives up.
_DEEPEST = 32
_NAMES_KEPT = 50


@dataclass(frozen=True)
class Columns:
    """Where a manifest keeps what.

    Attributes:
      url: column of the URL or path.
      id: column of the key, or None.
      carry: columns that go to the row; None is all others, of Parquet without those of bytes.
    """

    url: str = DEFAULT_URL_COLUMN
    id: str | None = None
    carry: tuple[str, ...] | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns that must be there, with the flag that names each."""
        carried = dict.fromkeys(self.carry or (), "carry_columns")
        of_id = {} if self.id is None else {self.id: "id_column"}
        return {**carried, **of_id, self.url: "url_column"}

    def carried(self, row: Mapping[str, Any], place: str) -> dict[str, Any]:
        """What of a row goes to its item, as JSON; none where there is nothing."""
        if self.carry is None:
            found = {name: value for name, value in row.items() if name not in (self.url, self.id)}
        else:
            found = {name: row[name] for name in self.carry if name in row}
        values = {
            encodable(name): json_value(value, f"{place}: {name}") for name, value in found.items()
        }
        return {CARRIED: values} if values else {}


class ColumnCheck:
    """Whether a manifest has the columns that are named, found out row by row."""

    def __init__(self, where: str, columns: Columns) -> None:
        self._where, self._missing = where, columns.named
        self._there: dict[str, None] = {}

    def see_header(self, names: Sequence[str]) -> None:
        """Note all names there are; InvalidInput where one is missing or comes twice."""
        self.see(names)
        self.check()
        for name in names:
            # Spreadsheets write columns without a name, several at times.
            if name and names.count(name) > 1:
                raise InvalidInput(f"{self._where}: column {name!r} comes twice; expected it once")

    def see(self, names: Iterable[str]) -> None:
        """Note the names of a row."""
        if self._missing:
            for name in names:
                self._missing.pop(name, None)
                if len(self._there) < _NAMES_KEPT:
                    self._there[str(name)] = None

    def check(self, column: str | None = None) -> None:
        """Raise InvalidInput where a column, or any, has not been seen."""
        for name, flag in self._missing.items():
            if column in (None, name):
                there = some_of(list(self._there), 20) or "none"
                raise InvalidInput(
                    f"{self._where}: no column {name!r}; it has {there}; name one with --{flag}"
                )


def json_value(value: Any, place: str, depth: int = 0) -> Any:
    """A cell as JSON; what JSON has no type for becomes text.

    NaN and infinities, dates, times, decimals and durations become text, bytes Base64.

    Raises:
      InvalidInput: lists in lists without end, or a type that is none of these.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)
    if isinstance(value, list | tuple | dict):
        if depth == _DEEPEST:
            raise InvalidInput(f"{place}: over {_DEEPEST} lists or objects within each other")
        if isinstance(value, dict):
            return {
                encodable(str(name)): json_value(inner, place, depth + 1)
                for name, inner in value.items()
            }
        return [json_value(inner, place, depth + 1) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise InvalidInput(f"{place}: {type(value).__name__}; expected what JSON can hold")


def shown(value: Any) -> str:
    """A value as JSON, for messages; a list or object, of whatever size and depth, by its kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return "bytes" if isinstance(value, bytes) else json.dumps(json_value(value, "a value"))
