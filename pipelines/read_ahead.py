"""Ordered look-ahead: the next batch is read and decoded while the model works on this one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
) -> Generator[tuple[Item, Loaded | ItemFailure], None, None]:
    """Load items in threads, at most `ahead` of them before they are asked for.

    Memory is bounded by `ahead` loaded items, whatever the number of items.

    Args:
      items: what to load.
      load: called in a thread; an ItemFailure that it raises is that item's result, any
        other exception ends the iteration.
      threads: size of the pool.
      ahead: items in flight or loaded and waiting.
      known_failure: an item's failure where it is known without work, which needs no thread then;
        to hand an item to a thread and back takes longer than many a failure.

    Yields:
      (item, what load returned or the failure it raised), in the order of `items`.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        pending: deque[tuple[Item, Future[Loaded | ItemFailure]]] = deque()
        try:
            for item in items:
                failure = known_failure(item)
                future = pool.submit(_capture, load, item) if failure is None else _done(failure)
                pending.append((item, future))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


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


def _capture(load: Callable[[Item], Loaded], item: Item) -> Loaded | ItemFailure:
    try:
        return load(item)
    except ItemFailure as failure:
        return failure
