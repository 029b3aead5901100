"""The pointing game (Zhang et al. 2016): does a word's attention peak on what the word names?

A caption names an object where it has the name of one of the picture's boxes, or that name's
plural in -s or -es. What counts is the cell with most attention when the last word of the name
was written: a hit is a cell that looks at a point in a box of that name, no matter in which of
several. There is no tolerance: a point is as coarse as the grid, and a box between the cells'
points cannot be hit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from model.boxes import Box, Boxes
from model.decoding import Prediction
from model.places import places
from model.records import Manifest
from model.vocabulary import Vocabulary

_PLURALS = ("", "s", "es")


@dataclass(frozen=True)
class Pointed:
    """An object that a caption names.

    Attributes:
      name: of its category.
      word: place in the caption of the name's last word, from 0.
      cell: that had most attention when this word was written, row-major from 0.
      hit: whether the cell looks into a box of that name.
      chance: share of all cells for which that is so.
    """

    name: str
    word: int
    cell: int
    hit: bool
    chance: float


Found = Mapping[str, Sequence[Pointed]]
"""What each picture's caption names, by key; pictures that the boxes' file has."""


def point(
    predictions: Iterable[Prediction], vocabulary: Vocabulary, manifest: Manifest, boxes: Boxes
) -> Found:
    """Find the named objects of captions and where attention pointed.

    Args:
      predictions: captions with their attention.
      vocabulary: of the captioner.
      manifest: of the records, which says where their cells lie.
      boxes: of the pictures; a caption of a picture that is not among them is passed over.
    """
    forms = _forms(boxes.names)
    found = {}
    for prediction in predictions:
        objects = boxes.of(prediction.key)
        if objects is not None:
            words = [vocabulary.words[token] for token in prediction.tokens]
            points = _points(boxes.size_of(prediction.key), manifest)
            found[prediction.key] = [
                _pointed(name, place, prediction.attention[place], points, objects[name])
                for name, place in _named(words, forms)
                if name in objects
            ]
    return found


def summarise_pointing(found: Found) -> dict[str, Any]:
    """Sum up what `point` found, as JSON.

    Returns:
      score: hits over named objects; None without any.
      named: objects that captions name, each as often as it is named.
      images: pictures of which boxes are known.
      chance: the score of a point drawn from all cells alike; None without a named object.
      reachable: share of the named objects that some cell would hit; None likewise.
    """
    named = list(chain.from_iterable(found.values()))
    return {
        "score": _mean(pointed.hit for pointed in named),
        "named": len(named),
        "images": len(found),
        "chance": _mean(pointed.chance for pointed in named),
        "reachable": _mean(pointed.chance > 0 for pointed in named),
    }


def _forms(names: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Words that name something → the name of its category."""
    # A name as it stands goes before another one's plural.
    return {
        tuple(f"{name}{plural}".split()): name for plural in reversed(_PLURALS) for name in names
    }


def _named(words: Sequence[str], forms: Mapping[tuple[str, ...], str]) -> Iterator[tuple[str, int]]:
    """Names in a caption and the place of their last word; of "hot dog" the dog is no name."""
    longest = max(map(len, forms), default=0)
    start = 0
    while start < len(words):
        for count in range(min(longest, len(words) - start), 0, -1):
            name = forms.get(tuple(words[start : start + count]))
            if name is not None:
                yield name, start + count - 1
                start += count
                break
        else:
            start += 1


def _points(size: tuple[int, int], manifest: Manifest) -> list[tuple[float, float]]:
    """Where the P cells look in a picture of this width and height: shares x, y, row-major."""
    rows, columns = places(size[::-1], manifest)
    return [(x, y) for y in rows for x in columns]


def _pointed(
    name: str,
    word: int,
    weights: np.ndarray,
    points: Sequence[tuple[float, float]],
    boxes: Sequence[Box],
) -> Pointed:
    inside = [any(box.holds(x, y) for box in boxes) for x, y in points]
    cell = int(np.argmax(weights))
    return Pointed(name, word, cell, inside[cell], sum(inside) / len(inside))


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None
