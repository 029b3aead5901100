import threading
from itertools import chain

import pytest

from model.errors import ItemFailure, Reason
from pipelines.read_ahead import batches, read_ahead


def test_order_is_kept_whatever_finishes_first() -> None:
    second_is_loaded = threading.Event()

    def load(item: int) -> int:
        if item == 0:
            assert second_is_loaded.wait(60)
        elif item == 1:
            second_is_loaded.set()
        return item * 10

    assert list(read_ahead(range(20), load, threads=2, ahead=4)) == [
        (item, item * 10) for item in range(20)
    ]


def test_the_next_items_load_while_the_first_is_used() -> None:
    loaded = [threading.Event() for _ in range(10)]

    def load(item: int) -> int:
        loaded[item].set()
        return item

    stream = read_ahead(range(10), load, threads=1, ahead=3)
    assert next(stream) == (0, 0)
    assert all(event.wait(60) for event in loaded[:4])
    assert not any(event.is_set() for event in loaded[4:])
    assert next(stream) == (1, 1)
    assert loaded[4].wait(60)
    stream.close()
    assert not any(event.is_set() for event in loaded[6:])


def test_a_failure_is_its_items_result() -> None:
    failure = ItemFailure(Reason.EMPTY, "0 bytes")

    def load(item: int) -> int:
        if item == 1:
            raise failure
        return item

    assert list(read_ahead(range(3), load, threads=2, ahead=2)) == [(0, 0), (1, failure), (2, 2)]


def test_any_other_error_ends_the_iteration() -> None:
    def load(item: int) -> int:
        if item == 2:
            raise OSError("disk")
        return item

    stream = read_ahead(range(100), load, threads=2, ahead=2)
    assert [next(stream), next(stream)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match="disk"):
        next(stream)


def test_batches_lose_nothing() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(batches([], 3)) == []


def test_the_last_batches_share_what_is_left() -> None:
    """Three at work: each takes a third of the rest, so that they end within one item."""
    sizes = [len(batch) for batch in batches(range(40), 8, total=40, at_once=3)]
    assert sizes == [8, 8, 8, 6, 4, 2, 2, 1, 1]
    assert [len(batch) for batch in batches(range(20), 8, total=20)] == [8, 8, 4]


@pytest.mark.parametrize("total", [0, 1, 9, 30, 1000])
def test_batches_lose_nothing_where_the_total_is_wrong(total: int) -> None:
    found = list(batches(range(30), 4, total=total, at_once=2))
    assert list(chain(*found)) == list(range(30))
    assert max(map(len, found)) <= 4


def test_what_is_known_to_fail_needs_no_thread_and_keeps_its_place() -> None:
    failure = ItemFailure(Reason.DNS, "no such name")
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item

    def known(item: int) -> ItemFailure | None:
        return failure if item % 3 else None

    found = list(read_ahead(range(7), load, threads=1, ahead=3, known_failure=known))
    assert found == [(item, failure if item % 3 else item) for item in range(7)]
    assert loaded == [0, 3, 6]
