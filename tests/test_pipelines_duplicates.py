"""pipelines/duplicates: each record that an earlier one equals, and where both are."""

from pipelines.duplicates import Place, find_twice


def digests(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(16, "little") for number in numbers)


def test_everything_once_is_no_duplicate() -> None:
    # Alike in one half each.
    assert list(find_twice([digests(1, 2), b"", digests(3, 2**64 + 1, 2**64)])) == []
    assert list(find_twice([])) == []
    assert list(find_twice([b"", b""])) == []


def test_both_places_are_named_the_earlier_first() -> None:
    found = find_twice([digests(9, 2**100, 7), b"", digests(5, 7), b"", digests(9, 2**100)])
    assert list(found) == [
        (Place(0, 2), Place(2, 1)),
        (Place(0, 0), Place(4, 0)),
        (Place(0, 1), Place(4, 1)),
    ]


def test_of_three_the_second_and_third_are_duplicates() -> None:
    found = list(find_twice([digests(8, 8), digests(8)]))
    assert found == [(Place(0, 0), Place(0, 1)), (Place(0, 1), Place(1, 0))]
