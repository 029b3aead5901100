"""Items in shards: the same for every order of reading, unique over all, little in memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InvalidInput
from pipelines import partition
from pipelines.keys import root_of, unique
from pipelines.listing import Found, make_item
from pipelines.partition import Partition


def found(*keys: str) -> list[Found]:
    return [Found({**make_item(key, "s"), "n": number}) for number, key in enumerate(keys)]


def shards(items: list[Found], count: int) -> list[list[dict[str, Any]]]:
    with Partition(items) as made:
        assert made.items == len(items)
        return list(made.shards(count))


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b", "#", "#2", "", "1", "c#x", "ä"])),
    st.sampled_from([1, 2, 7, 256, 300, 1000]),
)
def test_shards_hold_what_numbering_all_at_once_gives(keys: list[str], count: int) -> None:
    items = found(*keys)
    made = shards(items, count)
    assert len(made) == count
    assert all(shard == sorted(shard, key=lambda item: item["key"]) for shard in made)
    together = sorted((item for shard in made for item in shard), key=lambda item: item["n"])
    assert together == list(unique(items))


def test_ids_that_look_numbered_are_spread_like_others() -> None:
    items = [Found(make_item(f"a#{number}", "s"), "id") for number in range(1000)]
    made = shards(items, 10)
    assert all(50 < len(shard) < 200 for shard in made)
    assert len({item["key"] for shard in made for item in shard}) == 1000
    with pytest.raises(InvalidInput, match="id 'a#7' comes twice"):
        shards([*items, items[7]], 10)


@given(st.text("a#12"), st.integers(2, 10**6))
def test_numbering_keeps_the_root(key: str, number: int) -> None:
    assert root_of(f"{key}#{number}") == root_of(key)
    assert key.startswith(root_of(key))


@pytest.mark.parametrize("count", [1, 3, 257, 1000])
def test_shards_are_even_and_may_be_asked_for_again(count: int) -> None:
    items = found(*(f"https://x.test/{n}.jpg" for n in range(5000)))
    with Partition(items) as made:
        first = list(made.shards(count))
        assert list(made.shards(count)) == first
    sizes = [len(shard) for shard in first]
    assert sum(sizes) == 5000
    mean = 5000 / count
    assert max(sizes) < mean + 6 * mean**0.5 + 1


def test_an_items_shard_does_not_depend_on_the_others() -> None:
    one = shards(found("a", "b", "c", "d"), 5)
    other = shards(found("d", "c", "x", "b", "a", "y"), 5)
    for shard, there in zip(one, other, strict=True):
        assert {item["key"] for item in shard} <= {item["key"] for item in there}


def test_an_id_that_comes_twice_is_named_with_its_place() -> None:
    items = [Found(make_item("7", "s"), f"m.csv, line {line}: id") for line in (2, 3)]
    with pytest.raises(InvalidInput) as caught:
        shards(items, 4)
    assert str(caught.value) == (
        "m.csv, line 3: id '7' comes twice; expected every id once, or leave --id_column out"
    )


def test_what_an_item_holds_comes_back_whole() -> None:
    item = {
        **make_item("k\u2028\r\n", "s\udc00"),
        "state": "1-2",
        "tar": ["t", 1, 2],
        "columns": {"a": [None, 1.5, "\u0085"]},
    }
    [[made]] = shards([Found(item)], 1)
    assert made == item


def test_the_files_are_removed_whatever_happens(tmp_path: Path) -> None:
    with Partition(found("a"), str(tmp_path)):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())

    def broken() -> Iterator[Found]:
        yield from found("a")
        raise InvalidInput("m.csv: no UTF-8")

    with pytest.raises(InvalidInput, match="no UTF-8"):
        Partition(broken(), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="set TMPDIR to a directory that can be written"):
        Partition(found("a"), str(tmp_path / "none"))


def test_memory_does_not_grow_with_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_PIECE_BYTES", 2**14)

    def peak(count: int) -> int:
        tracemalloc.start()
        with Partition(Found(make_item(f"{n}.jpg", "s" * 100)) for n in range(count)) as made:
            for _ in made.shards(count // 100):
                pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    assert peak(8000) < 1.5 * peak(2000)
