"""Ordered look-ahead: the next batch is read and decoded while the model works on this one."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from model.errors import ItemFailure

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    *,
    threads: int,
    ahead: int,
    known_failure: Callable[[Item], ItemFailure | None] = lambda _: None,
    weigh: Callable[[Loaded], int] = lambda _: 0,
    most: int = 0,
) -> Generator[tuple[Item, Loaded | ItemFailure], None, None]:
    """Load items in threads, at most `ahead` of them before they are asked for.

    Memory is bounded by `ahead` loaded items, whatever the number of items, and where they are
    weighed, by `most` and the weight of one for each thread.

    Args:
      items: what to load.
      load: called in a thread; an ItemFailure that it raises is that item's result, any
        other exception ends the iteration.
      threads: size of the pool.
      ahead: items in flight or loaded and waiting.
      known_failure: an item's failure where it is known without work, which needs no thread then;
        to hand an item to a thread and back takes longer than many a failure.
      weigh: what a loaded item weighs, in bytes for one; called in its thread.
      most: weight of the items that are loaded and wait, above which no thread begins another one
        but that which is needed next.

    Yields:
      (item, what load returned or the failure it raised), in the order of `items`.
    """
    room = _Room(most)

    def loaded(number: int, item: Item) -> Loaded | ItemFailure:
        if not room.wait(number):
            raise CancelledError
        try:
            result = load(item)
        except ItemFailure as failure:
            return failure
        room.take(weigh(result))
        return result

    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        pending: deque[tuple[Item, Future[Loaded | ItemFailure]]] = deque()

        def first() -> tuple[Item, Loaded | ItemFailure]:
            item, future = pending.popleft()
            try:
                result = future.result()
            finally:
                # An error that it holds would hold this frame, and so what waits here, for good.
                del future
            room.hand_out(0 if isinstance(result, ItemFailure) else weigh(result))
            return item, result

        try:
            for number, item in enumerate(items):
                failure = known_failure(item)
                pending.append(
                    (item, pool.submit(loaded, number, item) if failure is None else _done(failure))
                )
                if len(pending) > ahead:
                    yield first()
            while pending:
                yield first()
        finally:
            for _, future in pending:
                future.cancel()
            room.end()


class _Room:
    """For loaded items: some weight, and always the one that is handed out next.

    Items are begun in order, so that one that waits for room never keeps those before it waiting.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._next, self._is_over = most, 0, 0, False
        self._changed = threading.Condition()

    def wait(self, number: int) -> bool:
        """Wait until an item of this number may be loaded; False when none is any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._held <= self._most or number <= self._next or self._is_over
            )
            return not self._is_over

    def take(self, weight: int) -> None:
        """Keep an item."""
        with self._changed:
            self._held += weight

    def hand_out(self, weight: int) -> None:
        """Give up the next one."""
        with self._changed:
            self._held -= weight
            self._next += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def batches(
    items: Iterable[Item], size: int, *, total: int | None = None, at_once: int = 1
) -> Iterator[list[Item]]:
    """Cut a stream into lists of at most `size`; none is empty.

    Args:
      items: the stream.
      size: items of a batch.
      total: how many items there are, about. The last batches are then smaller, so that those
        who work on them end together (guided self-scheduling, Polychronopoulos and Kuck 1987).
      at_once: batches worked on at once.
    """
    stream, taken = iter(items), 0
    while True:
        share = size if total is None else max(1, -(-(total - taken) // at_once))
        batch = list(islice(stream, min(size, share)))
        if not batch:
            return
        taken += len(batch)
        yield batch


def _done(failure: ItemFailure) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(failure)
    return future
