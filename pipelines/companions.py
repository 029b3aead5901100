"""The small files that belong to rows: sidecars, and strips of attention.

All of a shard's are there, whole, before its rows are; those of rows that are no more are gone.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

from pipelines import storage
from pipelines.file_names import file_of
from pipelines.jobs import WORK_DIR, Job
from pipelines.shards import write_errors

ATTENTION_DIR = "attention"
SIDECAR_SUFFIX, _STRIP_SUFFIX = ".txt", ".png"
# Below the sidecars' directory: where they lie until they are whole.
SCRATCH_DIR = ".captionbeam"
# A bucket takes a tenth of a second for each.
_THREADS = 8
_MOST_WAITING = 4 * _THREADS


class Companions:
    """Writes them in threads; a context manager.

    Args:
      job: whose rows they belong to.
      sidecars: directory of sidecars; None for none.
      strips: whether there are strips.
    """

    def __init__(self, job: Job, sidecars: str | None = None, *, strips: bool = False) -> None:
        self._job, self._sidecars, self._strips = job, sidecars, strips
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="companions")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """The companions themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the threads; what is not begun is not written."""
        self._pool.shutdown(cancel_futures=True)

    def strip_of(self, key: str) -> str:
        """The path of a key's strip, relative to OUTPUT."""
        return f"{ATTENTION_DIR}/{file_of(key, _STRIP_SUFFIX)}"

    def has_strip(self, key: str) -> bool:
        """Whether an earlier run left a key's strip, where there are strips."""
        return not self._strips or storage.exists(self._job.path(self.strip_of(key)))

    def write_strip(self, key: str, png: bytes) -> None:
        """Write a key's strip; raises what an earlier one could not be written for."""
        output = self._job.output
        path, scratch = self._job.path(self.strip_of(key)), self._job.path(WORK_DIR, ATTENTION_DIR)
        self._submit(partial(_write, output, path, png, scratch))

    def write_sidecar(self, key: str, caption: str) -> None:
        """Write a key's caption where there are sidecars; raises as `write_strip`."""
        if self._sidecars is not None:
            path = f"{self._sidecars}/{file_of(key, SIDECAR_SUFFIX)}"
            data, scratch = f"{caption}\n".encode(), f"{self._sidecars}/{SCRATCH_DIR}"
            self._submit(partial(_write, self._sidecars, path, data, scratch))

    def finish(self, gone: Iterable[str]) -> None:
        """Wait until all are written, then remove those of keys that have no row any more.

        Raises:
          InvalidInput: one cannot be written or removed.
        """
        while self._waiting:
            self._waiting.popleft().result()
        for key in gone:
            if self._strips:
                _delete(self._job.output, self._job.path(self.strip_of(key)))
            if self._sidecars is not None:
                _delete(self._sidecars, f"{self._sidecars}/{file_of(key, SIDECAR_SUFFIX)}")

    def _submit(self, write: partial[None]) -> None:
        self._waiting.append(self._pool.submit(write))
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().result()


def _write(directory: str, path: str, data: bytes, scratch: str) -> None:
    with write_errors(directory):
        storage.write_bytes(path, data, scratch)


def _delete(directory: str, path: str) -> None:
    with write_errors(directory):
        storage.delete(path)
