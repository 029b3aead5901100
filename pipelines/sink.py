"""Where a shard's rows or records go: temporary files, renamed when every item is accounted for."""

import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType

from model.errors import ItemFailure, Reason
from model.progress import Progress
from pipelines import storage
from pipelines.jobs import FileInfo, Item, Job, ShardResult, ShardSpec


class Sink:
    """Takes what becomes of a shard's items; writes temporary files, renames them at the end."""

    def __init__(self, job: Job, spec: ShardSpec, progress: Progress) -> None:
        self._job, self._spec, self._progress = job, spec, progress
        self._failed: Counter[str] = Counter()
        self._parts_failed: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._written = 0
        self._stack = ExitStack()
        self._output = self._stack.enter_context(
            _HashedFile(job, job.output_file.format(name=spec.name))
        )
        self._failures = self._stack.enter_context(
            _HashedFile(job, job.failures_file.format(name=spec.name))
        )

    def write(self, payload: bytes, **counts: int) -> None:
        """Add one item's row or record; `counts` go to the result."""
        self._output.write(payload)
        self._counts.update(counts)
        self._written += 1
        self._progress.advance()

    def write_copy(self, payload: bytes, **counts: int) -> None:
        """Add one more row or record of the item written last; it counts as no item."""
        self._output.write(payload)
        self._counts.update(counts)

    def fail(self, item: Item, failure: ItemFailure, **counts: int) -> None:
        """Account for an item that has no row; `counts` go to the result."""
        self._failed[failure.reason] += 1
        self._counts.update(counts)
        self._write_failure(item, failure)
        self._progress.advance()

    def fail_part(self, item: Item, failure: ItemFailure) -> None:
        """Account for a part of an item; the item itself goes on."""
        self._parts_failed[failure.reason] += 1
        self._write_failure(item, failure)

    def commit(self) -> ShardResult:
        """Rename the files into place and leave the result that marks the shard finished."""
        accounted = self._written + self._failed.total()
        if accounted != self._spec.items:
            raise RuntimeError(
                f"shard {self._spec.name}: {accounted} items accounted for, "
                f"expected {self._spec.items}"
            )
        self._stack.close()
        result = ShardResult(
            name=self._spec.name,
            digest=self._spec.digest,
            inputs=self._spec.items,
            written=self._written,
            failed=dict(sorted(self._failed.items())),
            parts_failed=dict(sorted(self._parts_failed.items())),
            counts=dict(sorted(self._counts.items())),
            output=self._output.publish(),
            failures=self._failures.publish(),
        )
        storage.write_json(self._job.done_path(self._spec.name), asdict(result))
        return result

    def abandon(self) -> None:
        """Close the temporary files without publishing them."""
        self._stack.close()

    def _write_failure(self, item: Item, failure: ItemFailure) -> None:
        row = {
            "key": item["key"],
            "source": item["source"],
            "stage": self._job.stage,
            "reason": str(Reason(failure.reason)),
            "message": failure.message,
        }
        self._failures.write(storage.json_line(row))


class _HashedFile:
    """A file written under a temporary name, hashed on the way."""

    def __init__(self, job: Job, name: str) -> None:
        self._name, self._path = name, job.path(name)
        self._temporary = storage.temporary_path(self._path)
        self._sha256, self._bytes = hashlib.sha256(), 0

    def __enter__(self) -> "_HashedFile":
        self._file = storage.open_write(self._temporary)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def publish(self) -> FileInfo:
        """Rename the closed file into place."""
        storage.rename(self._temporary, self._path)
        return FileInfo(self._name, self._bytes, self._sha256.hexdigest())
