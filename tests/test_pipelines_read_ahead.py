import threading
from itertools import chain

import pytest

from model.errors import ItemFailure, Reason
from pipelines.read_ahead import _Room, batches, read_ahead


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


def test_large_items_are_handed_out_before_more_are_begun() -> None:
    lock, held, most_held = threading.Lock(), 0, 0

    def load(item: int) -> bytes:
        nonlocal held, most_held
        if item == 13:
            raise ItemFailure(Reason.EMPTY, "0 bytes")
        with lock:
            held += 100
            most_held = max(most_held, held)
        return bytes(100)

    taken = []
    for item, _ in read_ahead(range(60), load, threads=3, ahead=50, weigh=len, most=350):
        taken.append(item)
        with lock:
            held -= 100 * (item != 13)
    assert taken == list(range(60))
    # Four are more than 350. Each thread may have begun one more, and the next one is always begun.
    assert 400 <= most_held <= 400 + 3 * 100 + 100


def test_whoever_waits_for_room_goes_on_when_nobody_asks_any_more() -> None:
    begun: list[int] = []

    def load(item: int) -> bytes:
        begun.append(item)
        return bytes(100)

    stream = read_ahead(range(60), load, threads=3, ahead=50, weigh=len, most=0)
    assert next(stream)[0] == 0
    stream.close()
    assert len(begun) <= 6
    # One that was at work meanwhile leaves no room, and one that comes late waits for none.
    room = _Room(most=0)
    room.end()
    room.take(100)
    room.wait(59)


def test_small_items_are_loaded_as_far_ahead_as_ever() -> None:
    loaded = [threading.Event() for _ in range(10)]

    def load(item: int) -> bytes:
        loaded[item].set()
        return bytes(10)

    stream = read_ahead(range(10), load, threads=1, ahead=5, weigh=len, most=1000)
    next(stream)
    assert all(event.wait(60) for event in loaded[:6])
    stream.close()
