"""Pictures for people: attention over the photograph, and the curves of a training run.

Drawn through Figure objects alone: pyplot's state belongs to the caller.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.errors import InvalidInput
from model.sheet import DPI, MARGIN, Sheet, fitted, overlaid, save
from model.vocabulary import detokenise

COLUMNS = 5
PANEL_PIXELS = 400
# A panorama or a tower still leaves room for its word.
_MIN_PANEL_WIDTH = 180

# Pixels, at the resolution that the fonts below are chosen for.
_GAP, _WORD_HEIGHT, _CAPTION_LINE_HEIGHT, _BOLD_LETTER_WIDTH = 14, 44, 40, 17

# A map is drawn on the scale of its own peak, but of no less than this many times the mean:
# attention that is the same everywhere must look so.
_MIN_CONTRAST = 4.0


def draw_attention(
    image: np.ndarray,
    words: Sequence[str],
    attention: np.ndarray,
    places: np.ndarray,
    path: str | Path,
) -> None:
    """Draw a photograph and, word by word, where the model looked.

    The photograph comes first, then a panel for each word, `COLUMNS` in a row;
    beside the word stands the share of attention in the cell that has most.

    Args:
      image: uint8 [H, W, 3], upright RGB.
      words: T words of the caption, in order.
      attention: float [T, P], rows summing to 1; P is a square, cells row-major.
      places: where the grid's rows and columns look, shares of height and width: float [2, G].
      path: file to write; its suffix (png, jpg, pdf, svg) says the format.

    Raises:
      InvalidInput: shapes that do not fit each other, or weights that are negative, infinite
        or not numbers.
      OSError: the file cannot be written.
    """
    maps = attention_maps(image, words, attention, places)
    photo = fitted(image, PANEL_PIXELS)
    panels = [photo, *(overlaid(photo, strength(weights), places) for weights in maps)]
    titles = ["", *(_title(word, weights) for word, weights in zip(words, maps, strict=True))]

    height, width = photo.shape[:2]
    cell_width = max(width, _MIN_PANEL_WIDTH) + _GAP
    cell_height = height + _WORD_HEIGHT + _GAP
    columns = min(COLUMNS, len(panels))
    figure_width = max(columns * cell_width - _GAP, 2 * PANEL_PIXELS) + 2 * MARGIN
    caption = textwrap.wrap(detokenise(words), figure_width // _BOLD_LETTER_WIDTH)
    top = MARGIN + _CAPTION_LINE_HEIGHT * len(caption)
    figure_height = top + math.ceil(len(panels) / columns) * cell_height + _WORD_HEIGHT

    figure = Sheet(figure_width, figure_height)
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        row, column = divmod(index, columns)
        left = MARGIN + column * cell_width + (cell_width - _GAP - width) / 2
        figure.panel(panel, left, top + row * cell_height + _WORD_HEIGHT, title)
    figure.write("\n".join(caption), MARGIN, fontsize=12, fontweight="bold")
    if len(maps):
        side = maps.shape[1]
        note = f"%: share of a word's attention in its strongest cell of {side}×{side}"
        figure.write(note, figure_height - _WORD_HEIGHT, fontsize=8, color="gray")
    save(figure.figure, path)


def draw_history(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw training loss and validation CIDEr-D over steps, the best validation marked.

    Args:
      rows: of history.jsonl: `step`, and any of `loss` and `val_cider`. Of rows with one step
        the last counts.
      path: file to write; its suffix (png, jpg, pdf, svg) says the format.

    Raises:
      InvalidInput: no row has a step with a loss or a score.
      OSError: the file cannot be written.
    """
    curves = {
        label: points
        for name, label in (("loss", "training loss"), ("val_cider", "validation CIDEr-D"))
        if (points := _points(rows, name))
    }
    if not curves:
        raise InvalidInput("history has no losses or scores, expected rows of history.jsonl")
    figure = Figure(figsize=(8, 1 + 2.6 * len(curves)), dpi=DPI, layout="constrained")
    all_axes = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (label, points) in zip(all_axes, curves.items(), strict=True):
        _draw_curve(axes, label, points)
    if "validation CIDEr-D" in curves:
        _mark_best(all_axes[-1], curves["validation CIDEr-D"])
    all_axes[-1].set_xlabel("step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def strength(weights: np.ndarray) -> np.ndarray:
    """How bright a map of attention [g, g] is drawn, 0 to 1."""
    return weights / max(float(weights.max()), _MIN_CONTRAST / weights.size)


def attention_maps(
    image: np.ndarray, words: Sequence[str], attention: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Check what belongs together; arguments as `draw_attention`.

    Returns:
      The attention of each word, float32 [T, g, g].

    Raises:
      InvalidInput: shapes that do not fit each other, or weights that are negative, infinite
        or not numbers.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidInput(f"image {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    attention = np.asarray(attention, np.float32)
    if attention.ndim != 2 or len(attention) != len(words):
        raise InvalidInput(
            f"attention {list(attention.shape)} for {len(words)} words, expected a row for each"
        )
    side = math.isqrt(attention.shape[1])
    if side == 0 or side * side != attention.shape[1]:
        raise InvalidInput(
            f"attention over {attention.shape[1]} cells, expected a square grid such as 49"
        )
    if not np.isfinite(attention).all() or (attention < 0).any():
        raise InvalidInput("attention has weights below 0 or not finite, expected shares of 1")
    if places.shape != (2, side) or not (np.diff(places) >= 0).all():
        raise InvalidInput(
            f"places {list(places.shape)} for a grid of {side} rows and columns, expected 2 of as "
            "many, ascending"
        )
    return attention.reshape(-1, side, side)


def _title(word: str, weights: np.ndarray) -> str:
    short = word if len(word) <= 18 else f"{word[:17]}…"
    return f"{short}  {weights.max():.0%}"


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of rows that have it, by step."""
    values = {
        row["step"]: row[name]
        for row in rows
        if "step" in row and row.get(name) is not None and math.isfinite(row[name])
    }
    return sorted(values.items())


def _draw_curve(axes: Axes, label: str, points: Sequence[tuple[int, float]]) -> None:
    steps, values = zip(*points, strict=True)
    # Single validations are to be seen, thousands of them are a line.
    axes.plot(steps, values, color="tab:blue", marker="o" if len(points) <= 60 else "", ms=3.5)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_best(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    step, value = max(points, key=lambda point: point[1])
    axes.plot([step], [value], color="tab:red", marker="o", ms=7, linestyle="")
    axes.set_title(f"best {value:.3f} at step {step:,}", loc="right", fontsize=10, color="tab:red")
