"""The pointing game, on attention by hand."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.boxes import Box, Boxes
from model.decoding import Prediction
from model.pointing import Pointed, point, summarise_pointing
from model.preprocessing import KEEP, SQUASH
from model.vocabulary import Vocabulary

SIDE, IMAGE_SIZE = 3, 96
WORDS = ("a", "dog", "dogs", "hot", "cat", "bus", "buses", "glass", "wine", "and", "dress")
VOCABULARY = Vocabulary.build(dict.fromkeys(WORDS, 1), 1)
SIZES = {f"{name}.jpg": (300, 100) for name in "abc"}
# Where rows and columns look: at pixels 0, 32 and 64, in the middle of each.
POINTS = [0.5 / 96, 32.5 / 96, 64.5 / 96]
# Around what the middle cell of the right column looks at.
RIGHT = Box(0.6, 0.3, 0.7, 0.4)
RIGHT_CELL = (1, 2)


def written(caption: str, *peaks: tuple[int, int], key: str = "a.jpg") -> Prediction:
    """A caption whose words look at a row and a column each."""
    tokens = tuple(VOCABULARY.encode(caption))
    attention = np.full((len(tokens), SIDE, SIDE), 0.01, np.float32)
    for weights, (row, column) in zip(attention, peaks, strict=True):
        weights[row, column] = 0.92
    flat = attention.reshape(len(tokens), SIDE * SIDE)
    return Prediction(key, caption, -1.0, (), tokens, 1.0, flat)


def manifest(aspect: str = SQUASH) -> Any:
    """As much of a manifest as says where cells lie."""
    return SimpleNamespace(image_size=IMAGE_SIZE, grid_shape=(SIDE**2, 8), aspect=aspect)


def play(prediction: Prediction, names: Sequence[str] = (), **objects: Sequence[Box]) -> list[Any]:
    """What a caption of the only picture names; `_` stands for the blank of a name."""
    named = {name.replace("_", " "): tuple(boxes) for name, boxes in objects.items()}
    boxes = Boxes("boxes.json", frozenset([*names, *named]), {"a.jpg": named}, SIZES)
    return list(point([prediction], VOCABULARY, manifest(), boxes)["a.jpg"])


def hits(prediction: Prediction, **objects: Sequence[Box]) -> list[bool]:
    return [pointed.hit for pointed in play(prediction, (), **objects)]


def test_the_peak_when_the_word_was_written_counts_alone() -> None:
    caption, elsewhere = "a dog and", (0, 0)
    for place in range(3):
        peaks = [RIGHT_CELL if word == place else elsewhere for word in range(3)]
        found = play(written(caption, *peaks), dog=[RIGHT])
        cell = 5 if place == 1 else 0
        assert found == [Pointed("dog", 1, cell, place == 1, 1 / 9)]


def test_every_cell_lies_where_it_belongs() -> None:
    """Rows run downwards, columns to the right: no other cell than the box's own is a hit."""
    for row in range(SIDE):
        for column in range(SIDE):
            x, y = POINTS[column], POINTS[row]
            box = Box(x - 0.1, y - 0.1, x + 0.1, y + 0.1)
            right = [
                (y, x)
                for y in range(SIDE)
                for x in range(SIDE)
                if hits(written("dog", (y, x)), dog=[box]) == [True]
            ]
            assert right == [(row, column)]


def test_a_centre_on_the_edge_is_in_the_box() -> None:
    middle = written("dog", (1, 1))
    near = 1e-6
    at = POINTS[1]
    assert hits(middle, dog=[Box(at, at, at, at)]) == [True]
    for box in (
        Box(at + near, 0, 1, 1),
        Box(0, at + near, 1, 1),
        Box(0, 0, at - near, 1),
        Box(0, 0, 1, at - near),
    ):
        assert hits(middle, dog=[box]) == [False]


def test_of_two_with_one_name_any_counts() -> None:
    left = Box(0.0, 0.3, 0.1, 0.4)
    for cell, hit in ((RIGHT_CELL, True), ((1, 0), True), ((1, 1), False)):
        (found,) = play(written("dog", cell), dog=[left, RIGHT])
        assert (found.hit, found.chance) == (hit, pytest.approx(2 / 9))
    # One cell in two boxes is one chance.
    (found,) = play(written("dog", RIGHT_CELL), dog=[RIGHT, RIGHT])
    assert found.chance == pytest.approx(1 / 9)


def test_another_names_box_does_not_count() -> None:
    cells = [RIGHT_CELL] * 3
    assert hits(written("dog and cat", *cells), dog=[RIGHT], cat=[Box(0.1, 0.1, 0.2, 0.2)]) == [
        True,
        False,
    ]


def names(caption: str, all_names: Sequence[str], in_picture: Sequence[str]) -> Any:
    prediction = written(caption, *[(0, 0)] * len(caption.split()))
    boxes = {name.replace(" ", "_"): [RIGHT] for name in in_picture}
    return [(found.name, found.word) for found in play(prediction, all_names, **boxes)]


@pytest.mark.parametrize(
    ("caption", "all_names", "in_picture", "expected"),
    [
        ("a dog and dog", ["dog"], ["dog"], [("dog", 1), ("dog", 3)]),
        ("dogs and buses", ["dog", "bus"], ["dog", "bus"], [("dog", 0), ("bus", 2)]),
        ("a hot dog", ["dog", "hot dog"], ["dog", "hot dog"], [("hot dog", 2)]),
        ("hot dogs", ["dog", "hot dog"], ["dog", "hot dog"], [("hot dog", 1)]),
        # No dog was named, though the picture has one, too.
        ("a hot dog", ["dog", "hot dog"], ["dog"], []),
        ("a wine and glass", ["wine glass"], ["wine glass"], []),
        ("a wine", ["wine glass"], ["wine glass"], []),
        ("a dress", ["dres", "dress"], ["dres", "dress"], [("dress", 1)]),
        ("a cat", ["dog"], ["dog"], []),
        ("a cat", ["dog", "cat"], ["dog"], []),
        ("", ["dog"], ["dog"], []),
    ],
)
def test_what_a_caption_names(
    caption: str, all_names: list[str], in_picture: list[str], expected: list[tuple[str, int]]
) -> None:
    assert names(caption, all_names, in_picture) == expected


def test_the_summary_by_hand() -> None:
    pictures: Mapping[str, Mapping[str, tuple[Box, ...]]] = {
        "a.jpg": {"dog": (RIGHT,), "cat": (Box(0, 0, 1, 0.1),)},
        "b.jpg": {},
        # Between the cells.
        "c.jpg": {"dog": (Box(0.4, 0.4, 0.6, 0.6),)},
    }
    boxes = Boxes("boxes.json", frozenset(["dog", "cat"]), pictures, SIZES)
    predictions = [
        written("dog and cat", RIGHT_CELL, (0, 0), (2, 0)),
        written("dog", (0, 0), key="b.jpg"),
        written("a dog", (0, 0), (1, 1), key="c.jpg"),
        written("dogs", (0, 1), key="a.jpg#flip"),
        written("dog", RIGHT_CELL, key="other.jpg"),
    ]
    found = point(predictions, VOCABULARY, manifest(), boxes)
    assert list(found) == ["a.jpg", "b.jpg", "c.jpg", "a.jpg#flip"]
    assert summarise_pointing(found) == {
        # The dog of a.jpg; its cat, c.jpg's dog and the mirrored dog are missed.
        "score": 1 / 4,
        "named": 4,
        "images": 4,
        "chance": pytest.approx((1 / 9 + 3 / 9 + 0 + 1 / 9) / 4),
        "reachable": 3 / 4,
    }


def test_a_mirrored_picture_is_hit_where_its_object_went() -> None:
    boxes = Boxes("boxes.json", frozenset(["dog"]), {"a.jpg": {"dog": (RIGHT,)}}, SIZES)
    for column, hit in enumerate((False, True, False)):
        prediction = written("dog", (1, column), key="a.jpg#flip")
        (found,) = point([prediction], VOCABULARY, manifest(), boxes)["a.jpg#flip"]
        assert found.hit == hit


@pytest.mark.parametrize(
    ("aspect", "size", "rows"),
    [
        (SQUASH, (192, 96), POINTS),
        # 96 × 48 pixels: two rows of the network's cells, the first, their mean, the second.
        (KEEP, (192, 96), [0.5 / 48, 16.5 / 48, 32.5 / 48]),
        (KEEP, (77, 77), POINTS),
    ],
)
def test_cells_lie_where_the_aspect_puts_them(
    aspect: str, size: tuple[int, int], rows: list[float]
) -> None:
    """The picture is wide: its columns lie as ever, its rows may not."""
    for row, y in enumerate(rows):
        dot = Box(POINTS[2] - 1e-6, y - 1e-6, POINTS[2] + 1e-6, y + 1e-6)
        turned = Box(dot.top, dot.left, dot.bottom, dot.right)
        for box, picture, cell in ((dot, size, (row, 2)), (turned, size[::-1], (2, row))):
            boxes = Boxes(
                "b.json", frozenset(["dog"]), {"a.jpg": {"dog": (box,)}}, {"a.jpg": picture}
            )
            prediction = written("dog", cell)
            (found,) = point([prediction], VOCABULARY, manifest(aspect), boxes)["a.jpg"]
            assert (found.hit, found.chance) == (True, pytest.approx(1 / 9))


@pytest.mark.parametrize("found", [{}, {"a.jpg": []}])
def test_nothing_named_has_no_score(found: dict[str, list[Pointed]]) -> None:
    assert summarise_pointing(found) == {
        "score": None,
        "named": 0,
        "images": len(found),
        "chance": None,
        "reachable": None,
    }
