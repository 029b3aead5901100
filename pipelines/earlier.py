"""Goes on from what an earlier run made of a shard whose items, model or failures changed since.

An item's row stays where the item is the same, to the last field, and whoever makes the rows
says that it would make it again; only the others are worked on.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from model.errors import ItemFailure, Reason
from pipelines import storage
from pipelines.companions import Companions
from pipelines.jobs import FileInfo, Item, Job
from pipelines.row_formats import Row, RowFormat, read_json_lines
from pipelines.sink import Sink

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
      rows: their format.
      companions: the small files that belong to them.
    """

    def __init__(
        self,
        sink: Sink,
        items: Sequence[Item],
        is_current: Callable[[Row], bool],
        count: Callable[[Row], dict[str, int]],
        rows: RowFormat,
        companions: Companions,
    ) -> None:
        self._sink, self._items, self._count = sink, iter(items), count
        self._encoder, self._companions = rows.encoder(), companions
        earlier = _earlier_rows(sink.job, sink.spec.name, rows)
        # What an earlier row left beside it goes, unless this run writes its key's anew.
        self._gone = {key for key, (row, _) in earlier.items() if _REASON not in row}
        same = (item for item in items if _is_of(earlier, item))
        kept = ((str(item["key"]), earlier[item["key"]][0]) for item in same)
        self._kept = {key: row for key, row in kept if is_current(row)}
        sink.frame(self._encoder.begin())
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
        self._sink.frame(self._encoder.end())
        self._companions.finish(sorted(self._gone))

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
        key = str(row["key"])
        self._gone.discard(key)
        self._companions.write_sidecar(key, row["caption"])
        self._sink.write(self._encoder.add(row), **self._count(row))


def _earlier_rows(job: Job, name: str, rows: RowFormat) -> dict[str, tuple[Row, Item | None]]:
    """By key, the rows and failure rows of the last finished run, each with its item then."""
    result = job.last_result(name) if job.amendable else None
    if result is None:
        return {}
    items = _read(job.spec_path(name, result.digest), read_json_lines)
    found = [
        _read(job.path(result.output.file), rows.read, result.output),
        _read(job.path(result.failures.file), read_json_lines, result.failures),
    ]
    # Without all of them, a run that was killed while it renamed them is gone on from.
    if items is None or None in found:
        return {}
    by_key = {item["key"]: item for item in items}
    return {row["key"]: (row, by_key.get(row["key"])) for row in chain(*filter(None, found))}


def _is_of(earlier: Mapping[str, tuple[Row, Item | None]], item: Item) -> bool:
    """Whether an item has an earlier row, and is the same as then."""
    return item["key"] in earlier and earlier[item["key"]][1] == item


def _read(
    path: str, read: Callable[[bytes], list[Any]], info: FileInfo | None = None
) -> list[Any] | None:
    """The rows of a file, or None where it is not there or, with `info`, another one."""
    try:
        data = storage.read_bytes(path)
    except OSError:
        return None
    if info is not None and hashlib.sha256(data).hexdigest() != info.sha256:
        return None
    try:
        return read(data)
    except ValueError:
        return None
