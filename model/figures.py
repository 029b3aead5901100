"""Pictures for people: attention over the photograph, and the curves of a training run.

Drawn through Figure objects alone, so that threads and notebooks keep their own state.
"""

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from model.errors import InvalidInput
from model.vocabulary import detokenise

COLUMNS = 5
_PANEL_PIXELS = 420
_DPI = 150
_PANEL_INCHES = _PANEL_PIXELS / _DPI
_TITLE_INCHES, _CAPTION_LINE_INCHES = 0.42, 0.26
_HEAT = colormaps["inferno"]
# How far the photograph is darkened where a word does not look, and how much of it shows
# through where it looks most.
_DIMMED, _THROUGH = 0.35, 0.35
# A map is drawn on the scale of its own peak, but of no less than this many times the mean:
# attention that is the same everywhere must look so.
_MIN_CONTRAST = 4.0


def draw_attention(
    image: np.ndarray, words: Sequence[str], attention: np.ndarray, path: str | Path
) -> None:
    """Draw a photograph and, word by word, where the model looked.

    The encoder sees the whole photograph squashed to a square, so the grid is stretched over
    all of it. Each panel is titled with its word and the share of attention in the cell that
    has most. Panels are equal in size, `COLUMNS` in a row, the photograph first.

    Args:
      image: uint8 [H, W, 3], upright RGB.
      words: T words of the caption, in order.
      attention: float [T, P], rows summing to 1; P is a square, cells row-major.
      path: file to write; its suffix (png, jpg, pdf, svg) says the format.

    Raises:
      InvalidInput: shapes that do not fit each other, or weights that are negative, infinite
        or not numbers.
      OSError: the file cannot be written.
    """
    maps = _checked_maps(image, words, attention)
    photo = _fitted(image)
    panels = [photo, *(_overlaid(photo, weights) for weights in maps)]
    titles = ["", *(f"{_short(word)}  {m.max():.0%}" for word, m in zip(words, maps, strict=True))]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    height, width = photo.shape[:2]
    row_inches = _PANEL_INCHES * height / _PANEL_PIXELS + _TITLE_INCHES
    column_inches = max(_PANEL_INCHES * width / _PANEL_PIXELS, 1.2)
    caption = textwrap.wrap(detokenise(words), max(24, int(columns * column_inches * 9)))
    top_inches = 0.3 + _CAPTION_LINE_INCHES * len(caption)
    figure = Figure(
        figsize=(columns * column_inches, rows * row_inches + top_inches),
        dpi=_DPI,
    )
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(panel)
        axes.set_axis_off()
        axes.set_title(title, fontsize=11, pad=4, parse_math=False)
    total = rows * row_inches + top_inches
    figure.subplots_adjust(
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - (top_inches + _TITLE_INCHES - 0.1) / total,
        wspace=0.03,
        hspace=_TITLE_INCHES / (row_inches - _TITLE_INCHES),
    )
    figure.suptitle(
        "\n".join(caption),
        y=1 - 0.1 / total,
        va="top",
        fontsize=13,
        fontweight="bold",
        parse_math=False,
    )
    _save(figure, path)
