"""Where a shard's rows or records go: temporary files, renamed when every item is accounted for."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict

from model.errors import ItemFailure, Reason
from pipelines import storage
from pipelines.begun import Earlier
from pipelines.columns import CARRIED
from pipelines.jobs import FileInfo, Item, Job, ShardResult, ShardSpec
from pipelines.tally import Tally


class Sink:
    """Takes what becomes of a shard's items; writes temporary files, renames them at the end.

    Attributes:
      job: without specs.
      spec: the shard's.
      earlier: what is known of an earlier attempt at it.
    """

    def __init__(
        self,
        job: Job,
        spec: ShardSpec,
        tally: Tally | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self.job, self.spec = job, spec
        self.earlier = Earlier() if earlier is None else earlier
        self._tally = Tally() if tally is None else tally
        self._failed: Counter[str] = Counter()
        self._parts_failed: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._written = 0
        with ExitStack() as stack:
            self._output = HashedFile(job, job.output_file.format(name=spec.name))
            stack.callback(self._output.discard)
            self._failures = HashedFile(job, job.failures_file.format(name=spec.name))
            stack.callback(self._failures.discard)
            self._stack = stack.pop_all()

    def write(self, payload: bytes, **counts: int) -> None:
        """Add one item's row or record; `counts` go to the result."""
        self._output.write(payload)
        self._written += 1
        self._account(counts)

    def write_copy(self, payload: bytes, **counts: int) -> None:
        """Add one more row or record of the item written last; it counts as no item."""
        self._output.write(payload)
        self._counts.update(counts)

    def frame(self, payload: bytes) -> None:
        """Add what stands before the first row or behind the last one."""
        self._output.write(payload)

    def fail(self, item: Item, failure: ItemFailure, **counts: int) -> None:
        """Account for an item that has no row; `counts` go to the result."""
        self._write_failure(item, failure)
        self._failed[failure.reason] += 1
        self._tally.failed += 1
        self._account(counts)

    def fail_part(self, item: Item, failure: ItemFailure) -> None:
        """Account for a part of an item; the item itself goes on."""
        self._parts_failed[failure.reason] += 1
        self._write_failure(item, failure)

    def commit(self) -> ShardResult:
        """Rename the files into place and leave the result that marks the shard finished."""
        accounted = self._written + self._failed.total()
        if accounted != self.spec.items:
            raise RuntimeError(
                f"shard {self.spec.name}: {accounted} items accounted for, "
                f"expected {self.spec.items}"
            )
        self._output.close()
        self._failures.close()
        if self.job.lease is not None:
            # A launch that took over may make another job here.
            self.job.lease.check()
        result = ShardResult(
            name=self.spec.name,
            digest=self.spec.digest,
            inputs=self.spec.items,
            written=self._written,
            failed=dict(sorted(self._failed.items())),
            parts_failed=dict(sorted(self._parts_failed.items())),
            counts=dict(sorted(self._counts.items())),
            output=self._output.publish(),
            failures=self._failures.publish(),
            attempt=self.spec.attempt,
        )
        storage.write_json(self.job.done_path(self.spec.name), asdict(result))
        return result

    def abandon(self) -> None:
        """Remove what was not published."""
        self._stack.close()

    def _account(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)
        self._tally.done += 1
        if self.job.lease is not None:
            self.job.lease.keep()

    def _write_failure(self, item: Item, failure: ItemFailure) -> None:
        row = {
            "key": item["key"],
            "source": item["source"],
            "stage": self.job.stage,
            "reason": str(Reason(failure.reason)),
            "message": failure.message,
            **({CARRIED: item[CARRIED]} if CARRIED in item else {}),
        }
        self._failures.write(storage.json_line(row))


class HashedFile:
    """A file below OUTPUT that gets its name at the end, hashed on the way."""

    def __init__(self, job: Job, name: str) -> None:
        """Opens it; to be written, closed and published, and to be discarded whatever happens."""
        self._name = name
        self._file = storage.TemporaryFile(job.path(name))
        self._sha256, self._bytes = hashlib.sha256(), 0
        self.close, self.discard = self._file.close, self._file.discard

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def publish(self) -> FileInfo:
        """Rename the closed file into place."""
        self._file.publish()
        return FileInfo(self._name, self._bytes, self._sha256.hexdigest())
