"""Manifests of bulk captioning: files that list URLs or paths (pipelines/manifest_rows)."""

import posixpath
from collections.abc import Iterator
from typing import Any

from model.errors import InvalidInput
from pipelines.columns import ColumnCheck, Columns, shown
from pipelines.listing import Found, make_item, scheme
from pipelines.local_listing import state_of
from pipelines.manifest_rows import Row, read_rows


def read_manifest(where: str, columns: Columns) -> Iterator[Found]:
    """The items of a manifest, in its order, one after the other.

    Args:
      where: path of the manifest, on any Beam filesystem.
      columns: where it keeps what.

    Raises:
      InvalidInput: it cannot be read, or has no such column.
    """
    check = ColumnCheck(where, columns)
    base = posixpath.dirname(where)
    rows = False
    for row in read_rows(where, columns, check):
        rows = True
        check.see(row.cells)
        yield _found(row, where, base, check)
    if rows:
        check.check()


def _found(row: Row, where: str, base: str, check: ColumnCheck) -> Found:
    columns, place = row.columns, f"{where}, {row.place}"
    written = row.cells.get(columns.url) or ""
    if not isinstance(written, str):
        raise InvalidInput(f"{place}: {columns.url} is {shown(written)}; expected text")
    written = written.strip()
    source = _locate(written, base)
    is_local = bool(source) and scheme(source) is None
    once = None
    if columns.id is None:
        key = written or row.place
    else:
        check.check(columns.id)
        key = _id(row.cells.get(columns.id), place, columns.id)
        once = f"{place}: {columns.id}"
    item = make_item(key, source, state_of(source) if is_local else None)
    return Found({**item, **columns.carried(row.cells, place)}, once)


def _id(value: Any, place: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidInput(f"{place}: {column} is {shown(value)}; expected text or a number")
    return str(value)


def _locate(written: str, base: str) -> str:
    """The source that a manifest's cell means; empty stays empty."""
    return written if not written or scheme(written) else posixpath.join(base, written)
