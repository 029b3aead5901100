"""Draws a small world in COCO's format: coloured shapes, and captions that say what is where.

    python -m demo.toy_coco --output DIR [--seed 0]

A scene shows one object ("a large red square at the top left") or two side by side or one
over the other ("a large red square left of a small blue triangle"). `NOVEL` objects never
occur in training, though their sizes, colours and places do. What a caption may say follows from
the scene alone, so that a caption can be exactly right.

    DIR/annotations/captions_{train,val}.json     COCO captions; each image also has
        "novel": bool, "objects": [{"name", "bbox": [x, y, width, height], "words"}]
    DIR/annotations/instances_{train,val}.json    COCO boxes; a category is an object's words
    DIR/images/{train,val}/NAME.png
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TRAIN, VAL = "train", "val"
SIDE = 192
SHAPES = ("square", "triangle")
# Sides in pixels, from and up to; far enough apart that no middle size is ambiguous.
SIZES = {"small": (34, 38), "large": (70, 76)}
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 156, 62),
    "blue": (40, 70, 214),
    "yellow": (240, 208, 30),
    "purple": (150, 50, 180),
    "black": (24, 24, 24),
}
# Column and row of the quarter of the picture.
PLACES = {
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
# Size, colour and place of objects that never occur in training; every pair of them does.
NOVEL = (
    ("large", "green", "top left"),
    ("small", "red", "top right"),
    ("large", "yellow", "bottom right"),
    ("small", "blue", "bottom left"),
)
_COLOUR_JITTER = 10
# Pixels that an object may lie off the middle of its quarter.
_SHIFT = 9
_BACKGROUND = (196, 246)
# Drawn larger and averaged down, so that edges are smooth.
_OVERSAMPLING = 3
_IDS_A_SPLIT = 1_000_000

Words = tuple[str, str, str]


@dataclass(frozen=True)
class Thing:
    """An object of a scene.

    Attributes:
      words: size, colour and shape.
      place: of `PLACES`.
      bbox: left, top, width, height in pixels.
      fill: its colour, RGB 0–255.
    """

    words: Words
    place: str
    bbox: tuple[int, int, int, int]
    fill: tuple[int, int, int]

    @property
    def name(self) -> str:
        """As a caption names it."""
        return f"a {_category(self.words)}"


@dataclass(frozen=True)
class World:
    """Where a world lies.

    Attributes:
      root: DIR.
    """

    root: Path

    def annotations(self, split: str) -> Path:
        """COCO captions of a split."""
        return self.root / "annotations" / f"captions_{split}.json"

    def instances(self, split: str) -> Path:
        """COCO boxes of a split."""
        return self.root / "annotations" / f"instances_{split}.json"

    def images(self, split: str) -> Path:
        """Directory of a split's pictures."""
        return self.root / "images" / split


def draw_world(
    output: str | Path, *, seed: int, num_train: int, num_val: int, num_novel: int
) -> World:
    """Draw the pictures and write the annotations; the same arguments give the same bytes.

    Args:
      output: DIR, made where it is missing.
      seed: of everything drawn.
      num_train: scenes to train on.
      num_val: held-out scenes of objects that occur in training.
      num_novel: held-out scenes with an object that does not; they follow the others.

    Returns:
      Where it all lies.
    """
    world = World(Path(output))
    world.annotations(TRAIN).parent.mkdir(parents=True, exist_ok=True)
    kinds = {TRAIN: [False] * num_train, VAL: [False] * num_val + [True] * num_novel}
    for number, (split, novel) in enumerate(kinds.items()):
        generator = np.random.default_rng([seed, number])
        world.images(split).mkdir(parents=True, exist_ok=True)
        # Ids of the splits differ, as in COCO.
        images = [
            _draw_image(index + 1 + number * _IDS_A_SPLIT, generator, wanted, world, split)
            for index, wanted in enumerate(novel)
        ]
        captions = [
            {"id": image["id"], "image_id": image["id"], "caption": image.pop("caption")}
            for image in images
        ]
        about = {"info": {"description": "captionbeam's toy world", "seed": seed}}
        _write(world.annotations(split), {**about, "images": images, "annotations": captions})
        _write(world.instances(split), {**about, **_instances(images)})
    return world


def caption(things: Sequence[Thing]) -> str:
    """What is said of a scene; its first object lies left of or above the second."""
    first = things[0]
    if len(things) == 1:
        return f"{first.name} at the {first.place}"
    second = things[1]
    beside = PLACES[first.place][1] == PLACES[second.place][1]
    return f"{first.name} {'left of' if beside else 'above'} {second.name}"


def draw(things: Sequence[Thing], generator: np.random.Generator) -> Image.Image:
    """The picture of a scene, on a plain ground of some light grey."""
    side = SIDE * _OVERSAMPLING
    grey = int(generator.integers(*_BACKGROUND))
    picture = Image.new("RGB", (side, side), (grey, grey, grey))
    pen = ImageDraw.Draw(picture)
    for thing in things:
        left, top, width, height = (value * _OVERSAMPLING for value in thing.bbox)
        right, bottom = left + width - 1, top + height - 1
        if thing.words[2] == "triangle":
            corners = [(left, bottom), (right, bottom), ((left + right) // 2, top)]
            pen.polygon(corners, fill=thing.fill)
        else:
            pen.rectangle((left, top, right, bottom), fill=thing.fill)
    return picture.reduce(_OVERSAMPLING)


def _instances(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Images, annotations and categories of COCO's instances JSON."""
    # All of an object's words: no picture has two of them, so that a name means one box.
    ids = {words: number for number, words in enumerate(product(SIZES, COLOURS, SHAPES), 1)}
    of_image = [(image["id"], item) for image in images for item in image["objects"]]
    return {
        "images": [
            {name: image[name] for name in ("id", "file_name", "width", "height")}
            for image in images
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": ids[tuple(item["words"])],
                "bbox": item["bbox"],
                "iscrowd": 0,
            }
            for number, (image_id, item) in enumerate(of_image, 1)
        ],
        "categories": [{"id": number, "name": _category(words)} for words, number in ids.items()],
    }


def _category(words: Words) -> str:
    return " ".join(words)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _compose(generator: np.random.Generator, novel: bool) -> list[Thing]:
    """Choose scenes until one is novel, or is not, as wanted."""
    while True:
        things = _any_scene(generator)
        if any((*thing.words[:2], thing.place) in NOVEL for thing in things) == novel:
            return things


def _any_scene(generator: np.random.Generator) -> list[Thing]:
    # One object in three scenes, two in the others: those have more to learn.
    count = 1 if generator.random() < 1 / 3 else 2
    kinds = list(product(SIZES, COLOURS, SHAPES))
    chosen = [kinds[index] for index in generator.choice(len(kinds), count, replace=False)]
    column, row = int(generator.integers(2)), int(generator.integers(2))
    spots = [(column, row)]
    if count == 2:
        spots = [(0, row), (1, row)] if generator.random() < 0.5 else [(column, 0), (column, 1)]
    return [_thing(generator, words, spot) for words, spot in zip(chosen, spots, strict=True)]


def _thing(generator: np.random.Generator, words: Words, spot: tuple[int, int]) -> Thing:
    low, high = SIZES[words[0]]
    size = int(generator.integers(low, high + 1))
    quarter = SIDE // 2
    left, top = (
        position * quarter + (quarter - size) // 2 + int(generator.integers(-_SHIFT, _SHIFT + 1))
        for position in spot
    )
    jitter = generator.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
    red, green, blue = np.clip(np.array(COLOURS[words[1]]) + jitter, 0, 255).tolist()
    place = next(name for name, position in PLACES.items() if position == spot)
    return Thing(words, place, (left, top, size, size), (red, green, blue))


def _draw_image(
    image_id: int, generator: np.random.Generator, novel: bool, world: World, split: str
) -> dict[str, Any]:
    """Save a picture; returns its entry, and its caption beside."""
    things = _compose(generator, novel)
    file_name = f"{split}-{image_id % _IDS_A_SPLIT:05d}.png"
    draw(things, generator).save(world.images(split) / file_name)
    return {
        "id": image_id,
        "file_name": file_name,
        "width": SIDE,
        "height": SIDE,
        "novel": novel,
        "objects": [
            {"name": thing.words[2], "bbox": list(thing.bbox), "words": list(thing.words)}
            for thing in things
        ],
        "caption": caption(things),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a world from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.toy_coco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=3000, help="scenes (%(default)s)")
    parser.add_argument("--val", type=int, default=240, help="held-out scenes (%(default)s)")
    parser.add_argument("--novel", type=int, default=40, help="novel scenes (%(default)s)")
    args = parser.parse_args(argv)
    world = draw_world(
        args.output,
        seed=args.seed,
        num_train=args.train,
        num_val=args.val,
        num_novel=args.novel,
    )
    print(world.root)


if __name__ == "__main__":
    main()
