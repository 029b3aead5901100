"""Manifests of bulk captioning: .txt, .csv, .tsv and .jsonl files that list URLs or paths."""

import csv
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InvalidInput

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
MANIFEST_SUFFIXES = (".txt", *_DELIMITERS, ".jsonl")
DEFAULT_URL_COLUMN = "url"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Columns:
    """Where a manifest keeps what.

    Attributes:
      url: column of the URL or path.
      id: column of the key, or None.
    """

    url: str = DEFAULT_URL_COLUMN
    id: str | None = None


def read_manifest(where: str, columns: Columns) -> list[dict[str, str]]:
    """The items of a manifest, in its order; blank lines are none.

    Args:
      where: path of the manifest, on any Beam filesystem.
      columns: where it keeps what.

    Raises:
      InvalidInput: it cannot be read, has no such column, or an id comes twice.
    """
    suffix = Path(where).suffix.lower()
    text = _read_text(where)
    if suffix == ".txt":
        rows: Iterable[tuple[int, Mapping[str, Any]]] = _lines(where, text, columns)
    elif suffix == ".jsonl":
        rows = _json_objects(where, text)
    else:
        rows = _table(where, text, _DELIMITERS[suffix])
    listed = list(rows)
    _check_columns(where, listed, columns)
    return list(_rows_to_items(where, listed, columns))


def scheme(source: str) -> str | None:
    """Tells `https` of `https://…`; None of a local path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match else None


def make_item(key: str, source: str) -> dict[str, str]:
    """An item; bytes of a file name that are no UTF-8 become escapes."""
    return {"key": _encodable(key), "source": _encodable(source)}


def _encodable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_text(where: str) -> str:
    try:
        if scheme(where):
            from pipelines import storage

            data = storage.read_bytes(where)
        else:
            data = Path(where).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: no UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InvalidInput(f"{where}: cannot be read ({error})") from error


def _lines(where: str, text: str, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    if columns.id is not None:
        raise InvalidInput(
            f"{where}: a .txt manifest has no columns, so no --id_column {columns.id}; "
            "take .csv, .tsv or .jsonl"
        )
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, {columns.url: line.strip()}


def _json_objects(where: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
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
        yield number, row


def _table(where: str, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise InvalidInput(
                    f"{where}, line {reader.line_num}: more cells than the header has columns"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInput(f"{where}, line {reader.line_num}: {error}") from error


def _check_columns(where: str, rows: list[tuple[int, Mapping[str, Any]]], columns: Columns) -> None:
    there = dict.fromkeys(name for _, row in rows for name in row)
    for flag, name in (("url_column", columns.url), ("id_column", columns.id)):
        if rows and name is not None and name not in there:
            names = ", ".join(map(str, there)) or "none"
            raise InvalidInput(
                f"{where}: no column {name!r}; it has {names}; name one with --{flag}"
            )


def _rows_to_items(
    where: str, rows: list[tuple[int, Mapping[str, Any]]], columns: Columns
) -> Iterator[dict[str, str]]:
    base = posixpath.dirname(where)
    used: set[str] = set()
    times: Counter[str] = Counter()
    for number, row in rows:
        written = row.get(columns.url) or ""
        if not isinstance(written, str):
            raise InvalidInput(
                f"{where}, line {number}: {columns.url} is {_shown(written)}; expected text"
            )
        written = written.strip()
        if columns.id is None:
            key = _unused_key(written or f"line {number}", used, times)
        else:
            key = _id(row.get(columns.id), f"{where}, line {number}", columns.id)
            if key in used:
                raise InvalidInput(
                    f"{where}, line {number}: {columns.id} {key!r} comes twice; "
                    "expected every id once, or leave --id_column out"
                )
        used.add(key)
        yield make_item(key, _locate(written, base))


def _id(value: Any, place: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidInput(f"{place}: {column} is {_shown(value)}; expected text or a number")
    return str(value)


def _shown(value: Any) -> str:
    """A value as JSON; a list or object, of whatever size and depth, by its kind."""
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else json.dumps(value)


def _unused_key(name: str, used: set[str], times: Counter[str]) -> str:
    key = name
    while key in used:
        times[name] += 1
        key = f"{name}#{times[name] + 1}"
    return key


def _locate(written: str, base: str) -> str:
    """The source that a manifest's cell means; empty stays empty."""
    return written if not written or scheme(written) else posixpath.join(base, written)
