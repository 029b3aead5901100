"""A sheet of panels addressed in pixels, and photographs with a map of heat over them.

Drawn through Figure objects alone: pyplot's state belongs to the caller.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL import Image

# Pixels an inch, and of paper around everything; fonts are chosen for this resolution.
DPI = 150
MARGIN = 24
POINTS_AN_INCH = 72
# A small font's letters are drawn whole pixels apart: measured up to 1.072 times their width.
_ROUNDING = 1.08

_HEAT = colormaps["inferno"]
# Brightness of the photograph where the map is dark; share of it where the map is brightest.
_DIMMED, _SHINES_THROUGH = 0.45, 0.4


class Sheet:
    """A figure addressed in pixels from its top left corner.

    Args:
      width: of the whole, in pixels.
      height: of the whole, in pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self._width, self._height = width, height

    def panel(self, pixels: np.ndarray, left: float, top: float, title: str) -> None:
        """Place uint8 [h, w, 3], pixel for pixel, its title above it."""
        height, width = pixels.shape[:2]
        bottom = 1 - (top + height) / self._height
        box = (left / self._width, bottom, width / self._width, height / self._height)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, aspect="auto")
        axes.set_axis_off()
        # With parse_math a caption's "$" would start a formula.
        axes.set_title(title, fontsize=10, pad=5, parse_math=False)

    def write(self, text: str, top: float, left: float = MARGIN, **style: Any) -> None:
        """Write lines downwards from a point."""
        place = (left / self._width, 1 - top / self._height)
        self.figure.text(*place, text, va="top", parse_math=False, **style)


def fitted(image: np.ndarray, pixels: int) -> np.ndarray:
    """The photograph with its longer side at so many pixels, so that every panel is sharp."""
    height, width = image.shape[:2]
    scale = pixels / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def overlaid(photo: np.ndarray, strength: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Blend a map in colours of heat over a dimmed grey photograph.

    Args:
      photo: uint8 [h, w, 3].
      strength: float32 [G, G], 0 (nothing) to 1 (most).
      places: where its rows and columns lie, as shares of height and width, ascending: float
        [2, G]. Between them the map is linear, outside as at the nearest; of those that lie at
        one place it is the mean.

    Returns:
      uint8 [h, w, 3].
    """
    height, width = photo.shape[:2]
    heat = _spread(places[0], height) @ strength @ _spread(places[1], width).T
    shown = np.clip(heat, 0, 1)[..., np.newaxis]
    grey = photo.mean(axis=2, keepdims=True) / 255
    glow = _HEAT(shown[..., 0])[..., :3] * (1 - _SHINES_THROUGH * (1 - grey))
    blended = grey * _DIMMED * (1 - shown) + glow * shown
    return (np.clip(blended, 0, 1) * 255).astype(np.uint8)


def _spread(places: np.ndarray, pixels: int) -> np.ndarray:
    """What a map's value at each of its places adds to each pixel: float64 [pixels, G]."""
    middles = (np.arange(pixels) + 0.5) / pixels
    apart, which = np.unique(places, return_inverse=True)
    shares = np.eye(len(apart))[:, which]
    shares /= shares.sum(axis=1, keepdims=True)
    columns = [np.interp(middles, apart, unit) for unit in np.eye(len(apart))]
    return np.stack(columns, axis=1) @ shares


def wrap(text: str, pixels: float, fontsize: float) -> list[str]:
    """Cut a text into lines that are at most so wide; a word wider than that is cut, too."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if width_of(longer, fontsize) <= pixels:
            lines[-1] = longer
        else:
            lines += _pieces(word, pixels, fontsize)
    return [line for line in lines if line]


def width_of(text: str, fontsize: float) -> float:
    """Width in pixels of a line in the default font, or a little more."""
    return sum(_letter_width(letter, fontsize) for letter in text)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix of `path` says the format."""
    with _any_script():
        figure.savefig(path)


def _pieces(word: str, pixels: float, fontsize: float) -> list[str]:
    pieces, used = [""], 0.0
    for letter in word:
        width = _letter_width(letter, fontsize)
        if pieces[-1] and used + width > pixels:
            pieces.append("")
            used = 0.0
        pieces[-1] += letter
        used += width
    return pieces


@lru_cache(maxsize=4096)
def _letter_width(letter: str, fontsize: float) -> float:
    """How far the next letter is moved, in pixels."""
    # Between two others, since the width of a blank alone is 0.
    points = _measured(f"x{letter}x", fontsize) - _measured("xx", fontsize)
    return points * DPI / POINTS_AN_INCH * _ROUNDING


def _measured(text: str, fontsize: float) -> float:
    font = FontProperties(size=fontsize)
    with _any_script():
        points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(points)


@contextmanager
def _any_script() -> Iterator[None]:
    with warnings.catch_warnings():
        # A word in a script that the font lacks is drawn as boxes; that is no one's mistake.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield
