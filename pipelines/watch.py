"""Progress of a job whatever runs it: the launcher watches for finished shards.

Workers of any kind leave OUTPUT/_work/done/NAME.json; what this process itself has accounted
for in unfinished shards (pipelines/tally) is added.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TextIO

from model.progress import LIVE_INTERVAL_S, Progress
from pipelines import storage, tally
from pipelines.jobs import Job

# Listing a bucket costs a request for every thousand shards.
_LOOK_EVERY_S = 10.0
# Of a resumed job with very many shards, the first lines shall not wait for all of them.
_READS_A_LOOK = 200


class ShardProgress:
    """Shards and images done of all, rate, time left and failures so far.

    Shards that were finished before count as done, not into the rate.

    Args:
      job: with its specs.
      stream: where lines go; stderr by default.
      clock: seconds, as time.monotonic.
    """

    def __init__(
        self, job: Job, stream: TextIO | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._job, self._clock = job, clock
        self._items = {spec.name: spec.items for spec in job.specs}
        self._failed: dict[str, int] = {}
        self._tallies = tally.watch(job.output)
        self._finished: set[str] = set()
        self._look()
        total, before = sum(self._items.values()), self._done()
        self._line = Progress(job.stage, total, "images", stream, before, clock)

    def refresh(self) -> None:
        """Look for finished shards when it is time, and say how far the job is."""
        if self._clock() >= self._next_look:
            self._look()
        self._line.show(self._done(), self._note())

    def close(self) -> None:
        """Look a last time and end the line."""
        self._look()
        tally.unwatch(self._job.output)
        self._line.close(self._done(), self._note())

    def _look(self) -> None:
        self._next_look = self._clock() + _LOOK_EVERY_S
        # No reason to end a job; each filesystem's client raises errors of its own.
        with suppress(Exception):
            files = storage.match(self._job.done_path("*"))
            names = {path.rpartition("/")[2].removesuffix(".json") for path in files}
            self._finished = names & self._items.keys()
            for name in sorted(self._finished - self._failed.keys())[:_READS_A_LOOK]:
                result = storage.read_json(self._job.done_path(name))
                self._failed[name] = sum(result["failed"].values())

    def _done(self) -> int:
        """Images of finished shards, and those accounted for in shards of this process."""
        done = {name: self._items[name] for name in self._finished}
        # A shard that is made again still has its old result.
        done.update((name, one.done) for name, one in list(self._tallies.items()))
        return sum(done.values())

    def _note(self) -> str:
        tallies = dict(self._tallies)
        finished = {name for name, one in tallies.items() if one.done == self._items[name]}
        finished |= self._finished - tallies.keys()
        failed = {**self._failed, **{name: one.failed for name, one in tallies.items()}}
        return f"{len(finished)} of {len(self._items)} shards, {sum(failed.values())} failed"


@contextmanager
def shown(job: Job) -> Iterator[None]:
    """Says how far a job is while the block runs it."""
    progress = ShardProgress(job)
    try:
        with refreshed(progress.refresh):
            yield
    finally:
        progress.close()


@contextmanager
def refreshed(refresh: Callable[[], None]) -> Iterator[None]:
    """Calls it again and again, in a thread, while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LIVE_INTERVAL_S):
            refresh()

    watching = threading.Thread(target=watch, daemon=True, name="progress")
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
