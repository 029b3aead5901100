"""Photographs to measure on: coco80's where they are, else drawn ones of the same size."""

import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from model.image_bytes import canonicalise
from model.preprocessing import CHANNELS, prepare

_COCO80 = Path(__file__).parents[2] / "shared" / "data" / "coco80" / "images"
# As many as COCO has of an image.
_CAPTIONS = 5
_DRAWN, _DRAWN_SIZE = 32, (640, 480)


@dataclass(frozen=True)
class Photographs:
    """A folder of photographs, and COCO annotations of them.

    Attributes:
      images: the folder.
      annotations: COCO captions JSON.
      count: photographs.
    """

    images: Path
    annotations: Path
    count: int


def lay_out(directory: Path, count: int) -> Photographs:
    """Fill a folder with `count` photographs, a few repeated under other names."""
    images = directory / "images"
    images.mkdir(parents=True)
    originals = list(_originals())
    listed, captions = [], []
    for index, data in zip(range(count), itertools.cycle(originals), strict=False):
        name = f"{index:06d}.jpg"
        if index < len(originals):
            (images / name).write_bytes(data)
        else:
            # The same file by another name: thousands of copies would fill a disk.
            os.link(images / f"{index % len(originals):06d}.jpg", images / name)
        listed.append({"id": index, "file_name": name})
        captions += [
            {
                "id": index * _CAPTIONS + number,
                "image_id": index,
                "caption": f"photograph {index % 7} of a street seen from side {number}",
            }
            for number in range(_CAPTIONS)
        ]
    annotations = directory / "captions.json"
    annotations.write_text(json.dumps({"images": listed, "annotations": captions}))
    return Photographs(images, annotations, count)


def decoded(photographs: Photographs, image_size: int) -> np.ndarray:
    """All of them as the network takes them: float32 [N, S, S, 3]."""
    images = np.empty((photographs.count, image_size, image_size, CHANNELS), np.float32)
    for row, path in enumerate(sorted(photographs.images.iterdir())):
        data = canonicalise(path.read_bytes()).data
        images[row] = prepare(tf.constant(data), image_size).image.numpy()
    return images


def _originals() -> Iterator[bytes]:
    if _COCO80.is_dir():
        yield from (path.read_bytes() for path in sorted(_COCO80.iterdir()))
        return
    generator = np.random.default_rng(0)
    for _ in range(_DRAWN):
        coarse = generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(_DRAWN_SIZE).save(file, "JPEG", quality=90)
        yield file.getvalue()
