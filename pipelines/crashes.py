"""An image that ends the process that decodes it costs its shard a second attempt, not the job.

While a shard is made, OUTPUT/_work/begun/NAME.json names the process that makes it. Whoever finds
the file of a process that is gone decodes every image of the shard in a process of its own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Self, TypeAlias

from model.errors import ItemFailure, Reason
from model.image_bytes import Canonical
from pipelines import storage
from pipelines.decoding_process import DecodingProcess
from pipelines.jobs import WORK_DIR, Job
from pipelines.processes import this_process

Decode: TypeAlias = Callable[[bytes], Canonical]


@contextmanager
def begun(job: Job, name: str) -> Iterator[bool]:
    """Note that this process makes a shard, for as long as the block runs.

    Yields:
      Whether a process ended while it made this shard: killed, or by one of its images.
    """
    path = job.path(WORK_DIR, "begun", f"{name}.json")
    ended_before = storage.exists(path)
    storage.write_json(path, asdict(this_process()))
    try:
        yield ended_before
    finally:
        storage.delete(path)


class CarefulDecoder:
    """Decodes in another process, so that what ends it is one image's failure.

    Safe to call from many threads, which wait for one another: whose image it was is then known.

    Args:
      decode: as `model.image_bytes.canonicalise`; pickled by reference.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._process: DecodingProcess | None = None
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        """The decoder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process."""
        self._end()

    def __call__(self, data: bytes) -> Canonical:
        """As the decoder; raises ItemFailure DECODE where it crashed."""
        with self._one:
            answer = self._ask(data)
        if isinstance(answer, Canonical):
            return answer
        raise answer

    def _ask(self, data: bytes) -> Canonical | Exception:
        if self._process is None:
            self._process = DecodingProcess(self._decode)
        try:
            answer: Canonical | Exception = self._process.ask(data)
            return answer
        except (EOFError, OSError):
            self._end()
            return ItemFailure(
                Reason.DECODE, "decoding it ended the process, expected a whole image"
            )

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
