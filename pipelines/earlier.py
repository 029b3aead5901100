"""Goes on from what an earlier run made of a shard whose items, model or failures changed since.

An item's row stays where the item is the same, to the last field, and whoever makes the rows
says that it would make it again; only the others are worked on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from model.errors import ItemFailure, Reason
from pipelines import storage
from pipelines.jobs import FileInfo, Item, Job
from pipelines.sink import Sink

Row = Mapping[str, Any]
# Only failures have one.
_REASON = "reason"


class RowSink:
    """A shard's rows, in the order of its items: those that are made, and those that are kept.

    Args:
      sink: where they go.
      items: all of the shard.
      is_current: whether an earlier run's row, or failure row, of the same item would be made
        again.
      count: what to count of a row that is no failure.
    """

    def __init__(
        self,
        sink: Sink,
        items: Sequence[Item],
        is_current: Callable[[Row], bool],
        count: Callable[[Row], dict[str, int]],
    ) -> None:
        self._sink, self._items, self._count = sink, iter(items), count
        earlier = _earlier_rows(sink.job, sink.spec.name, items)
        self._kept = {key: row for key, row in earlier.items() if is_current(row)}
        self.waiting = [item for item in items if item["key"] not in self._kept]
        """The items to be worked on, each of which must then be written or fail, in order."""

    def write(self, row: Row) -> None:
        """Add the next waiting item's row."""
        self._keep_until_next()
        self._write(row)

    def fail(self, item: Item, failure: ItemFailure) -> None:
        """Account for the next waiting item, which has no row."""
        self._keep_until_next()
        self._sink.fail(item, failure)

    def finish(self) -> None:
        """Add what is kept behind the last waiting item."""
        if self._keep_until_next() is not None:
            raise RuntimeError(f"shard {self._sink.spec.name}: a waiting item got no row")

    def _keep_until_next(self) -> Item | None:
        for item in self._items:
            row = self._kept.get(item["key"])
            if row is None:
                return item
            if _REASON in row:
                self._sink.fail(item, ItemFailure(Reason(row[_REASON]), row["message"]))
            else:
                self._write(row)
        return None

    def _write(self, row: Row) -> None:
        self._sink.write(storage.json_line(row), **self._count(row))


def _earlier_rows(job: Job, name: str, items: Sequence[Item]) -> dict[str, Row]:
    """By key, the rows and failure rows that the last finished run made of the same items."""
    result = job.last_result(name) if job.amendable else None
    if result is None:
        return {}
    then = _read_rows(job.spec_path(name, result.digest))
    rows = [_read_rows(job.path(file.file), file) for file in (result.output, result.failures)]
    # Without all of them, a run that was killed while it renamed them is gone on from.
    if then is None or None in rows:
        return {}
    same = {str(item["key"]) for item in _common(then, items)}
    return {row["key"]: row for row in chain(*filter(None, rows)) if row["key"] in same}


def _common(then: Sequence[Item], now: Sequence[Item]) -> Iterator[Item]:
    by_key = {item["key"]: item for item in then}
    return (item for item in now if by_key.get(item["key"]) == item)


def _read_rows(path: str, info: FileInfo | None = None) -> list[Any] | None:
    """The rows of a file, or None where it is not there or, with `info`, another one."""
    try:
        data = storage.read_bytes(path)
    except OSError:
        return None
    if info is not None and hashlib.sha256(data).hexdigest() != info.sha256:
        return None
    try:
        return [json.loads(line) for line in data.splitlines() if line]
    except ValueError:
        return None
