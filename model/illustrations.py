"""A handful of captions and where each word looked, for TensorBoard, at each validation.

The same images every time, so that TensorBoard's slider shows how attention learns. Drawn with
Pillow: a validation must not wait for a figure.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from model.decoding import Prediction
from model.errors import InvalidInput, ItemFailure
from model.figures import strength
from model.photographs import photograph
from model.places import places
from model.records import FLIP_MARK, Manifest
from model.sheet import DPI, MARGIN, POINTS_AN_INCH, fitted, overlaid, width_of, wrap
from model.vocabulary import Vocabulary

PICTURES = 4
"""Images that are drawn, the first ones of the split."""
TAG = "captions"
"""What their names begin with in TensorBoard, the key of the image behind a slash."""

# Pixels of a panel's longer side, and between panels.
PANEL = 150
_GAP = 10
# A tower's panels still leave room for their words.
_LEAST_WIDTH = 110
_WIDTH = 8 * (PANEL + _GAP) - _GAP
_MOST_REFERENCES = 5
# Stands for a photograph that is not there.
_GREY = 128
_BLACK, _PALE = (0, 0, 0), (110, 110, 110)
_CAPTION_FONT, _FONT, _SMALL_FONT = 11.0, 8.5, 7.5
# Height of a line, in heights of its font.
_LEADING = 1.3


class _Line(NamedTuple):
    text: str
    points: float
    colour: tuple[int, int, int]

    @property
    def height(self) -> int:
        return round(self.points * DPI / POINTS_AN_INCH * _LEADING)


class Illustrator:
    """Writes pictures of predictions to the default summary writer.

    Args:
      vocabulary: of the captioner.
      manifest: of the records.
      images: where the photographs lie by the keys of their records; None draws maps alone.

    Raises:
      InvalidInput: no such directory.
    """

    def __init__(
        self, vocabulary: Vocabulary, manifest: Manifest, images: Path | None = None
    ) -> None:
        if images is not None and not images.is_dir():
            raise InvalidInput(f"--images {images}: no such directory, expected the photographs")
        self._vocabulary, self._manifest, self._images = vocabulary, manifest, images

    def write(self, predictions: Sequence[Prediction], step: int) -> None:
        """Draw the first `PICTURES` of a split's predictions for a step."""
        for prediction in predictions[:PICTURES]:
            picture = self.draw(prediction)
            tf.summary.image(f"{TAG}/{prediction.key}", picture[np.newaxis], step=step)

    def draw(self, prediction: Prediction) -> np.ndarray:
        """Caption, references, and for each word its attention; uint8 [H, W, 3]."""
        photo, note = self._photograph(prediction.key)
        words = [self._vocabulary.words[token] for token in prediction.tokens]
        side = math.isqrt(prediction.attention.shape[-1])
        maps = prediction.attention.reshape(-1, side, side)
        panels = [] if photo is None else [("", photo)]
        canvas = np.full((PANEL, PANEL, 3), _GREY, np.uint8) if photo is None else photo
        room = max(canvas.shape[1], _LEAST_WIDTH)
        looked_at = places(canvas.shape[:2], self._manifest)
        for word, weights in zip(words, maps, strict=True):
            heat = overlaid(canvas, strength(weights), looked_at)
            panels.append((_title(word, weights, room), heat))
        return _compose(_lines(prediction, note), panels, room)

    def _photograph(self, key: str) -> tuple[np.ndarray | None, str]:
        """The photograph in a panel's size, or None and why it is not there."""
        if self._images is None:
            return None, ""
        path = self._images / key.removesuffix(FLIP_MARK)
        try:
            pixels = photograph(path.read_bytes(), PANEL, mirrored=key.endswith(FLIP_MARK))
        except OSError as error:
            return None, f"no photograph: {error.strerror}"
        except ItemFailure as failure:
            return None, f"no photograph: {failure.message}"
        return fitted(pixels, PANEL), ""


def _lines(prediction: Prediction, note: str) -> list[_Line]:
    """What stands above the panels, no line wider than they are together."""
    head = [prediction.key, f"log P {prediction.log_prob:.2f}", note]
    said = [
        (", ".join(filter(None, head)), _SMALL_FONT, _PALE),
        (prediction.caption or "(no word)", _CAPTION_FONT, _BLACK),
        *((f"– {text}", _FONT, _PALE) for text in prediction.references[:_MOST_REFERENCES]),
    ]
    return [
        _Line(line, points, colour)
        for text, points, colour in said
        for line in wrap(text, _WIDTH, points)
    ]


def _title(word: str, weights: np.ndarray, room: float) -> str:
    """The word, cut to fit, and the share of attention in its strongest cell."""
    share = f" {weights.max():.0%}"
    room -= width_of(share, _SMALL_FONT)
    if width_of(word, _SMALL_FONT) > room:
        word = f"{wrap(word, room - width_of('…', _SMALL_FONT), _SMALL_FONT)[0]}…"
    return word + share


def _compose(
    lines: Sequence[_Line], panels: Sequence[tuple[str, np.ndarray]], room: int
) -> np.ndarray:
    """Lines, and under them titled panels of one size in rows, each with so much width."""
    title = _Line("", _SMALL_FONT, _BLACK)
    height = panels[0][1].shape[0] if panels else 0
    step_x, step_y = room + _GAP, title.height + height + _GAP
    columns = (_WIDTH + _GAP) // step_x
    head = MARGIN + sum(line.height for line in lines) + _GAP
    rows = math.ceil(len(panels) / columns)
    page = Image.new("RGB", (_WIDTH + 2 * MARGIN, head + rows * step_y + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    top = MARGIN
    for line in lines:
        pen.text((MARGIN, top), line.text, line.colour, _font(line.points))
        top += line.height
    for index, (text, pixels) in enumerate(panels):
        row, column = divmod(index, columns)
        place = (MARGIN + column * step_x, head + row * step_y)
        pen.text(place, text, title.colour, _font(title.points))
        page.paste(Image.fromarray(pixels), (place[0], place[1] + title.height))
    return np.asarray(page)


@lru_cache
def _font(points: float) -> ImageFont.FreeTypeFont:
    """The font that model/sheet measures, at its resolution."""
    return ImageFont.truetype(findfont(FontProperties()), points * DPI / POINTS_AN_INCH)
