"""Answers that many threads ask for: each is found once, and kept for a while."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


@dataclass
class _Entry(Generic[_Answer]):
    future: "Future[_Answer]"
    ends_s: float
    weight: int


class Lookups(Generic[_Answer]):
    """A cache of answers, bounded in weight; safe to use from many threads."""

    def __init__(self, max_weight: int, now_s: Callable[[], float]) -> None:
        """Args:
        max_weight: sum of the answers' weights above which the longest unused are forgotten.
        now_s: monotonic seconds.
        """
        self._max_weight, self._now_s = max_weight, now_s
        self._entries: OrderedDict[Hashable, _Entry[_Answer]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def claim(self, key: Hashable, lifetime_s: float) -> tuple["Future[_Answer]", bool]:
        """The answer, there or to come, and whether it is the caller who has to find it.

        Args:
          key: what is asked.
          lifetime_s: seconds for which the answer is waited for, or kept unless `keep` says
            otherwise.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._now_s() < entry.ends_s:
                self._entries.move_to_end(key)
                return entry.future, False
            self._forget(key)
            future: Future[_Answer] = Future()
            self._entries[key] = _Entry(future, self._now_s() + lifetime_s, 1)
            self._grow(1)
            return future, True

    def known(self, key: Hashable) -> _Answer | None:
        """The answer where it is there and fresh; None where it would have to be waited for."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.future.done() or self._now_s() >= entry.ends_s:
                return None
            self._entries.move_to_end(key)
        return entry.future.result()

    def keep(
        self, key: Hashable, future: "Future[_Answer]", lifetime_s: float, weight: int = 1
    ) -> None:
        """Keeps an answer that was claimed for so many seconds from now; 0 forgets it."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.future is not future:
                return
            if lifetime_s <= 0:
                self._forget(key)
                return
            entry.ends_s = self._now_s() + lifetime_s
            grown, entry.weight = weight - entry.weight, weight
            self._grow(grown)

    def _grow(self, weight: int) -> None:
        self._weight += weight
        while self._weight > self._max_weight and len(self._entries) > 1:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry.weight
