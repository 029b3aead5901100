"""A photograph, and beside it where the model looked at each word: small panels, one picture.

Drawn with Pillow, in the font that matplotlib measured; without TensorFlow. The same picture has
the same pixels. For one thread at a time, as matplotlib's measuring is.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from model.figures import attention_maps, strength
from model.sheet import DPI, MARGIN, POINTS_AN_INCH, overlaid, width_of, wrap

# Pixels of a panel's longer side, and between panels.
PANEL = 150
_GAP = 10
# A tower's panels still leave room for their words.
_LEAST_WIDTH = 110
WIDTH = 8 * (PANEL + _GAP) - _GAP
SMALL_FONT = 7.5
_BLACK = (0, 0, 0)
# Height of a line, in heights of its font.
_LEADING = 1.3


class Line(NamedTuple):
    """A line of text: how large in points, and its colour."""

    text: str
    points: float
    colour: tuple[int, int, int]

    @property
    def height(self) -> int:
        """In pixels."""
        return round(self.points * DPI / POINTS_AN_INCH * _LEADING)


def draw_strip(
    photo: np.ndarray, words: Sequence[str], attention: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """A photograph, then a panel for each word with the word above it, in rows of 8 or more.

    Beside the word stands the share of attention in its strongest cell.

    Args:
      photo: uint8 [h, w, 3], its longer side `PANEL`.
      words: T words of the caption, in order.
      attention: float [T, P], rows summing to 1; P is a square, cells row-major.
      places: where the grid's rows and columns look, shares of height and width: float [2, G].

    Returns:
      uint8 [H, W, 3].

    Raises:
      InvalidInput: as `model.figures.attention_maps`.
    """
    panels = [("", photo), *word_panels(photo, words, attention, places)]
    room = room_of(photo)
    return compose(panels, room, (), min(WIDTH, len(panels) * (room + _GAP) - _GAP))


def word_panels(
    photo: np.ndarray, words: Sequence[str], attention: np.ndarray, places: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """For each word its title, and its attention over the photograph; arguments as `draw_strip`."""
    maps, room = attention_maps(photo, words, attention, places), room_of(photo)
    return [
        (_title(word, weights, room), overlaid(photo, strength(weights), places))
        for word, weights in zip(words, maps, strict=True)
    ]


def room_of(photo: np.ndarray) -> int:
    """Pixels of width that each panel of a photograph has for its title."""
    return max(photo.shape[1], _LEAST_WIDTH)


def compose(
    panels: Sequence[tuple[str, np.ndarray]], room: int, lines: Sequence[Line], width: int
) -> np.ndarray:
    """Lines, and under them titled panels of one size in rows.

    Args:
      panels: titles and pixels, uint8 [h, w, 3].
      room: width that each has.
      lines: none wider than `width`.
      width: that rows have at most, without the margins; no less than `room`.

    Returns:
      uint8 [H, W, 3].
    """
    title = Line("", SMALL_FONT, _BLACK)
    height = panels[0][1].shape[0] if panels else 0
    step_x, step_y = room + _GAP, title.height + height + _GAP
    in_a_row = (width + _GAP) // step_x
    head = MARGIN + sum(line.height for line in lines) + (_GAP if lines else 0)
    rows = math.ceil(len(panels) / in_a_row)
    page = Image.new("RGB", (width + 2 * MARGIN, head + rows * step_y + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    top = MARGIN
    for line in lines:
        pen.text((MARGIN, top), line.text, line.colour, _font(line.points))
        top += line.height
    for index, (text, pixels) in enumerate(panels):
        row, column = divmod(index, in_a_row)
        place = (MARGIN + column * step_x, head + row * step_y)
        pen.text(place, text, title.colour, _font(title.points))
        page.paste(Image.fromarray(pixels), (place[0], place[1] + title.height))
    return np.asarray(page)


def _title(word: str, weights: np.ndarray, room: float) -> str:
    """The word, cut to fit, and the share of attention in its strongest cell."""
    share = f" {weights.max():.0%}"
    room -= width_of(share, SMALL_FONT)
    if width_of(word, SMALL_FONT) > room:
        word = f"{wrap(word, room - width_of('…', SMALL_FONT), SMALL_FONT)[0]}…"
    return word + share


@lru_cache
def _font(points: float) -> ImageFont.FreeTypeFont:
    """The font that model/sheet measures, at its resolution."""
    return ImageFont.truetype(findfont(FontProperties()), points * DPI / POINTS_AN_INCH)
