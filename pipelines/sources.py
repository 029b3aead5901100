"""Where bulk captioning takes its images from: a directory, a glob or a manifest → items.

An item is {"key", "source"}: `source` is a path or URL, `key` names the image in the output
and is unique.

  directory   image files of the whole tree; key: path relative to the directory
  glob        every file that matches; key: the path
  manifest    .txt (one URL or path a line), .csv, .tsv, .jsonl; key: the id column, else the
              URL or path as it stands there, with "#2", "#3" … where it comes again

Relative paths in a manifest are relative to it. All three may lie on a Beam filesystem
(`gs://…`). A file name that is no UTF-8 stands with escapes and so fails as missing.
"""

import csv
import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InvalidInput

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
MANIFEST_SUFFIXES = (".txt", *_DELIMITERS, ".jsonl")
DEFAULT_URL_COLUMN = "url"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_EXPECTED = f"expected a directory, a glob or a manifest ({', '.join(MANIFEST_SUFFIXES)})"


@dataclass(frozen=True)
class Columns:
    """Where a manifest keeps what.

    Attributes:
      url: column of the URL or path.
      id: column of the key, or None.
    """

    url: str = DEFAULT_URL_COLUMN
    id: str | None = None


@dataclass(frozen=True)
class Sources:
    """What an input holds.

    Attributes:
      items: {"key", "source"} with unique keys, in order.
      skipped: what was passed over, by kind.
    """

    items: list[dict[str, str]]
    skipped: dict[str, int]


def list_sources(where: str, columns: Columns | None = None) -> Sources:
    """Lists a directory, a glob or a manifest.

    Raises:
      InvalidInput: nothing is there, or it cannot be read as what it is.
    """
    found = _list(where, columns or Columns())
    if not found.items:
        passed = ", ".join(f"{count} {kind}" for kind, count in found.skipped.items())
        raise InvalidInput(
            f"{where}: no image in it ({passed or 'it is empty'}); {_EXPECTED} "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))} files or URLs"
        )
    return found


def scheme(source: str) -> str | None:
    """ "https" of "https://…", None of a local path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match else None


def _list(where: str, columns: Columns) -> Sources:
    suffix = Path(where).suffix.lower()
    if scheme(where) in ("http", "https"):
        raise InvalidInput(f"{where}: a URL; {_EXPECTED} that lists URLs, or `captionbeam caption`")
    if scheme(where):
        return _read_manifest(where, columns) if suffix in MANIFEST_SUFFIXES else _match(where)
    path = Path(where)
    if path.is_dir():
        return _walk(path)
    if path.is_file() and suffix in MANIFEST_SUFFIXES:
        return _read_manifest(where, columns)
    if path.is_file() and suffix in IMAGE_SUFFIXES:
        return Sources([_item(where, where)], {})
    if path.exists():
        raise InvalidInput(f"{where}: a file of another kind; {_EXPECTED}")
    if not glob.has_magic(where):
        raise InvalidInput(f"{where}: no such file or directory; {_EXPECTED}")
    return _glob(where)


def _item(key: str, source: str) -> dict[str, str]:
    return {"key": _encodable(key), "source": _encodable(source)}


def _encodable(name: str) -> str:
    """Escapes the bytes of a file name that are no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


# Directories and globs.


def _walk(top: Path) -> Sources:
    """Every image of a tree, each directory once, however many links lead to it."""
    items: list[dict[str, str]] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    # What lies in the tree itself comes before what links lead to, so that a file's key is
    # its own path wherever it has one.
    waiting, linked = [top], list[Path]()
    while waiting or linked:
        directory = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(directory)
        if real in seen:
            skipped["directory seen before"] += 1
            continue
        seen.add(real)
        for entry in _scan(directory):
            path = directory / entry.name
            if entry.name.startswith("."):
                skipped["hidden"] += 1
            elif entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped["no image suffix"] += 1
            # A dangling link is no file either, but somebody meant it as one.
            elif entry.is_file() or entry.is_symlink():
                items.append(_item(path.relative_to(top).as_posix(), str(path)))
            else:
                skipped["no regular file"] += 1
    return Sources(sorted(items, key=lambda item: item["key"]), dict(sorted(skipped.items())))


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"{directory}: cannot be listed ({error.strerror})") from error


def _glob(pattern: str) -> Sources:
    items: list[dict[str, str]] = []
    skipped: Counter[str] = Counter()
    for path in sorted(set(glob.glob(pattern, recursive=True))):
        if os.path.isdir(path):
            skipped["directory"] += 1
        else:
            items.append(_item(path, path))
    return Sources(items, dict(skipped))


def _match(where: str) -> Sources:
    """A glob or a prefix on a Beam filesystem."""
    from apache_beam.io.filesystems import FileSystems

    magic = glob.has_magic(where)
    prefix = where.rstrip("/") + "/"
    try:
        [found] = FileSystems.match([where if magic else prefix + "**"])
    # Each filesystem's client raises errors of its own.
    except Exception as error:
        raise InvalidInput(f"{where}: cannot be listed ({error})") from error
    paths = sorted(metadata.path for metadata in found.metadata_list)
    if magic:
        return Sources([_item(path, path) for path in paths], {})
    images = [path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    skipped = {"no image suffix": len(paths) - len(images)} if len(paths) > len(images) else {}
    return Sources([_item(path.removeprefix(prefix), path) for path in images], skipped)


# Manifests.


def _read_manifest(where: str, columns: Columns) -> Sources:
    suffix = Path(where).suffix.lower()
    text = _read_text(where)
    if suffix == ".txt":
        rows: Iterable[tuple[int, Mapping[str, Any]]] = _lines(text, columns)
    elif suffix == ".jsonl":
        rows = _json_objects(where, text)
    else:
        rows = _table(where, text, _DELIMITERS[suffix])
    listed = list(rows)
    _check_columns(where, listed, columns)
    return Sources(list(_rows_to_items(where, listed, columns)), {})


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


def _lines(text: str, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    if columns.id is not None:
        raise InvalidInput(
            f"--id_column {columns.id}: a .txt manifest has no columns; take .csv, .tsv or .jsonl"
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
        except ValueError as error:
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
    base = where.rpartition("/")[0]
    used: set[str] = set()
    times: Counter[str] = Counter()
    for number, row in rows:
        written = row.get(columns.url) or ""
        if not isinstance(written, str):
            raise InvalidInput(
                f"{where}, line {number}: {columns.url} is {json.dumps(written)}; expected text"
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
        yield _item(key, _locate(written, base))


def _id(value: Any, place: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidInput(f"{place}: {column} is {json.dumps(value)}; expected text or a number")
    return str(value)


def _unused_key(name: str, used: set[str], times: Counter[str]) -> str:
    key = name
    while key in used:
        times[name] += 1
        key = f"{name}#{times[name] + 1}"
    return key


def _locate(written: str, base: str) -> str:
    """The source that a manifest's cell means; empty stays empty."""
    if not written or scheme(written) or os.path.isabs(written) or not base:
        return written
    return f"{base}/{written}"
