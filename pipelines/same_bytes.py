"""Images of the same bytes are asked about once, in a shard and in a process.

A process remembers the answers of its earlier shards, in memory that is bounded; so what comes
again in any shard is mostly asked about once in each process. Failures are a shard's own: what a
model refuses once it may take another time.

What is left out moves the images behind it forward, in their batch and into others. In batches of a
multiple of 8 images no answer was seen to depend on its place (docs/bulk_ledger.md); in others the
last digits of a score may, and so on the runner and on interruptions, with --dedupe alone.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from model.errors import ItemFailure
from pipelines.caption_rows import Told
from pipelines.jobs import Item
from pipelines.reading import Read, ReadImage

_MOST_BYTES = 64 * 2**20
# An answer's objects, a hypothesis', and the hash.
_BYTES_EACH, _BYTES_OF_HYPOTHESIS = 1000, 400


class Remembered:
    """The model's last answers by the SHA-256 of the bytes, for all threads of a process."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._answers: OrderedDict[str, Told] = OrderedDict()
        self._left = most_bytes
        self._lock = threading.Lock()

    def get(self, sha256: str) -> Told | None:
        """What the model said of these bytes, if that is still known."""
        with self._lock:
            if sha256 in self._answers:
                self._answers.move_to_end(sha256)
            return self._answers.get(sha256)

    def note(self, sha256: str, told: Told) -> None:
        """Remember an answer; the first one stays, and the longest unused are forgotten."""
        with self._lock:
            if sha256 in self._answers:
                return
            self._answers[sha256] = told
            self._left -= _size(told)
            while self._left < 0:
                _, forgotten = self._answers.popitem(last=False)
                self._left += _size(forgotten)


# One job at a time, and the one that its process began before.
@lru_cache(maxsize=2)
def remembered(token: str) -> Remembered:
    """What this process remembers for a job.

    Args:
      token: of the job.
    """
    del token
    return Remembered()


class Duplicates:
    """What a shard knows of images whose bytes came before.

    Args:
      remembered: the answers of the process' earlier shards; None where every image is asked about.
    """

    def __init__(self, remembered: Remembered | None) -> None:
        self._remembered = remembered
        self._outcomes: dict[str, Told | ItemFailure] = {}
        self._seen: set[str] = set()

    def once(self, images: Iterable[tuple[Item, Read]]) -> Iterator[tuple[Item, Read]]:
        """The same, without the data of bytes that came before: nobody is asked about them."""
        if self._remembered is None:
            yield from images
            return
        for item, read in images:
            if isinstance(read, ItemFailure):
                yield item, read
            elif self._is_known(read.sha256):
                yield item, replace(read, data=None)
            else:
                self._seen.add(read.sha256)
                yield item, read

    def outcome(self, read: ReadImage, answer: Told | ItemFailure | None) -> Told | ItemFailure:
        """The model's answer, or that of the same bytes before where it was not asked."""
        if answer is None:
            return self._outcomes[read.sha256]
        if self._remembered is not None:
            self._outcomes[read.sha256] = answer
        return answer

    def remember(self) -> None:
        """Keep the answers for the shards to come; called when this one is whole."""
        if self._remembered is not None:
            for sha256, outcome in self._outcomes.items():
                if isinstance(outcome, Told):
                    self._remembered.note(sha256, outcome)

    def _is_known(self, sha256: str) -> bool:
        if sha256 in self._seen:
            return True
        told = None if self._remembered is None else self._remembered.get(sha256)
        if told is not None:
            # Until it is written it may be forgotten by others.
            self._seen.add(sha256)
            self._outcomes[sha256] = told
        return told is not None


def _size(told: Told) -> int:
    """Bytes in memory, about."""
    strip = 0 if told.strip is None else len(told.strip)
    return (
        _BYTES_EACH + sys.getsizeof(told.caption) + strip + _BYTES_OF_HYPOTHESIS * len(told.nbest)
    )
