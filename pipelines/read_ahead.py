"""Ordered look-ahead: the next batch is read and decoded while the model works on this one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from model.errors import ItemFailure

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    *,
    threads: int,
    ahead: int,
) -> Generator[tuple[Item, Loaded | ItemFailure], None, None]:
    """Load items in threads, at most `ahead` of them before they are asked for.

    Memory is bounded by `ahead` loaded items, whatever the number of items.

    Args:
      items: what to load.
      load: called in a thread; an ItemFailure that it raises is that item's result, any
        other exception ends the iteration.
      threads: size of the pool.
      ahead: items in flight or loaded and waiting.

    Yields:
      (item, what load returned or the failure it raised), in the order of `items`.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        pending: deque[tuple[Item, Future[Loaded | ItemFailure]]] = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(_capture, load, item)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of `size`; the last may be shorter, none is empty."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _capture(load: Callable[[Item], Loaded], item: Item) -> Loaded | ItemFailure:
    try:
        return load(item)
    except ItemFailure as failure:
        return failure
