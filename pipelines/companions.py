"""The files that belong to rows: sidecars, the images beside them, and strips of attention.

All of a shard's are there, whole, before its rows are; those of rows that are no more are gone.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

from pipelines import storage
from pipelines.file_names import copy_of, file_of
from pipelines.jobs import WORK_DIR, Job
from pipelines.shards import write_errors

ATTENTION_DIR = "attention"
SIDECAR_SUFFIX, _STRIP_SUFFIX = ".txt", ".png"
# Below the sidecars' directory: where they lie until they are whole.
SCRATCH_DIR = ".captionbeam"
# A bucket takes a tenth of a second for each.
_THREADS = 8
_MOST_WAITING, _MOST_BYTES_WAITING = 4 * _THREADS, 64 * 2**20


class Companions:
    """Writes them in threads; a context manager.

    Args:
      job: whose rows they belong to.
      sidecars: directory of sidecars; None for none.
      copies: whether each has its image beside it.
      strips: whether there are strips.
    """

    def __init__(
        self,
        job: Job,
        sidecars: str | None = None,
        *,
        copies: bool = False,
        strips: bool = False,
    ) -> None:
        self._job, self._sidecars, self._copies, self._strips = job, sidecars, copies, strips
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="companions")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes_waiting = 0

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

    def are_left(self, key: str) -> bool:
        """Whether an earlier run left all of a key's files that a row alone does not make again."""
        paths = [self._job.path(self.strip_of(key))] if self._strips else []
        if self._copies:
            paths.append(self._copy_of(key))
        return all(map(storage.exists, paths))

    def write_strip(self, key: str, png: bytes) -> None:
        """Write a key's strip; raises what an earlier one could not be written for."""
        output = self._job.output
        path, scratch = self._job.path(self.strip_of(key)), self._job.path(WORK_DIR, ATTENTION_DIR)
        self._submit(partial(_write, output, path, png, scratch), len(png))

    def write_sidecar(self, key: str, caption: str) -> None:
        """Write a key's caption where there are sidecars; raises as `write_strip`."""
        if self._sidecars is not None:
            self._write_to(self._sidecars, self._sidecar_of(key), f"{caption}\n".encode())

    def write_copy(self, key: str, data: bytes) -> None:
        """Write a key's image, as it was read; raises as `write_strip`."""
        if self._sidecars is not None:
            self._write_to(self._sidecars, self._copy_of(key), data)

    def finish(self, gone: Iterable[str]) -> None:
        """Wait until all are written, then remove those of keys that have no row any more.

        Raises:
          InvalidInput: one cannot be written or removed.
        """
        while self._waiting:
            self._wait_for_first()
        for key in gone:
            if self._strips:
                _delete(self._job.output, self._job.path(self.strip_of(key)))
            if self._sidecars is not None:
                _delete(self._sidecars, self._sidecar_of(key))
                if self._copies:
                    _delete(self._sidecars, self._copy_of(key))

    def _sidecar_of(self, key: str) -> str:
        if self._copies:
            return self._copy_of(key) + SIDECAR_SUFFIX
        return f"{self._sidecars}/{file_of(key, SIDECAR_SUFFIX)}"

    def _copy_of(self, key: str) -> str:
        return f"{self._sidecars}/{copy_of(key, SIDECAR_SUFFIX)}"

    def _write_to(self, sidecars: str, path: str, data: bytes) -> None:
        self._submit(partial(_write, sidecars, path, data, f"{sidecars}/{SCRATCH_DIR}"), len(data))

    def _submit(self, write: partial[None], size: int) -> None:
        self._waiting.append((self._pool.submit(write), size))
        self._bytes_waiting += size
        while len(self._waiting) > _MOST_WAITING or self._bytes_waiting > _MOST_BYTES_WAITING:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        future, size = self._waiting.popleft()
        self._bytes_waiting -= size
        future.result()


def _write(directory: str, path: str, data: bytes, scratch: str) -> None:
    with write_errors(directory):
        storage.write_bytes(path, data, scratch)


def _delete(directory: str, path: str) -> None:
    with write_errors(directory):
        storage.delete(path)
