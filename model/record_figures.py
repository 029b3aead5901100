"""A picture of records: photographs, where their grids have most energy, and their captions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import InvalidInput
from model.sheet import MARGIN, Sheet, fitted, overlaid, save, width_of, wrap

# Pixels of a photograph's longer side, between panels, and between tiles.
_PANEL, _GAP, _TILE_GAP = 340, 10, 44
_TILE_WIDTH = 2 * _PANEL + _GAP
_TITLE_FONT, _FONT, _SMALL_FONT = 9, 8.5, 7.5
_LINE_HEIGHT, _SMALL_LINE_HEIGHT = 25, 22
_HEAD_HEIGHT = _LINE_HEIGHT + _SMALL_LINE_HEIGHT + 8
_COLUMNS = 3
# Room for what stands before a caption's lines, and for what says that it was cut.
_INDENT = 45
# COCO has five or six captions an image, of one or two such lines.
_MOST_CAPTIONS, _MOST_LINES = 6, 3
# A grid whose cells differ by less than this share of the strongest is drawn as even.
_LEAST_CONTRAST = 0.1
_TINY = 1e-30
_GREY = 128


@dataclass(frozen=True, eq=False)
class Picture:
    """What is drawn of one record.

    Attributes:
      title: its key.
      captions: raw, in order.
      grid: float [P, F], P a square, cells row-major; None of a record of an image.
      places: where the grid's rows and columns look, as model/places tells; None without a grid.
      photo: uint8 [H, W, 3], or None where it cannot be shown.
      note: said below the title; why there is no photograph.
    """

    title: str
    captions: tuple[str, ...]
    grid: np.ndarray | None
    places: np.ndarray | None
    photo: np.ndarray | None
    note: str = ""


def draw_records(pictures: Sequence[Picture], path: str | Path) -> None:
    """Draw records side by side, `_COLUMNS` in a row.

    Of each the photograph, the same under the energy of its grid if it has one, and its captions.
    Args:
      pictures: at least one.
      path: file to write; its suffix (png, jpg, pdf, svg) says the format.

    Raises:
      InvalidInput: nothing to draw, or a grid that is no square of cells.
      OSError: the file cannot be written.
    """
    if not pictures:
        raise InvalidInput("no record to draw, expected at least one")
    tiles = [_Tile(picture) for picture in pictures]
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(tiles))))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * (_TILE_WIDTH + _TILE_GAP) - _TILE_GAP + 2 * MARGIN
    height = sum(heights) + len(rows) * _TILE_GAP + MARGIN + _LINE_HEIGHT

    sheet = Sheet(width, height)
    top: float = MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            tile.draw(sheet, MARGIN + column * (_TILE_WIDTH + _TILE_GAP), top)
        top += row_height + _TILE_GAP
    if any(picture.grid is not None for picture in pictures):
        note = "in colour: energy of a cell, the length of its feature vector; brightest where most"
        sheet.write(note, top - _TILE_GAP / 2, fontsize=_SMALL_FONT, color="gray")
    save(sheet.figure, path)


def energy(grid: np.ndarray) -> np.ndarray:
    """Length of each cell's feature vector: float [P, F] → float32 [g, g].

    Raises:
      InvalidInput: P is no square.
    """
    side = math.isqrt(len(grid))
    if side == 0 or side * side != len(grid):
        raise InvalidInput(f"grid of {len(grid)} cells, expected a square such as 49")
    # float16 would overflow in the sum of squares.
    return np.linalg.norm(grid.astype(np.float32), axis=1).reshape(side, side)


class _Tile:
    """One record, measured before the sheet is made."""

    def __init__(self, picture: Picture) -> None:
        blank = np.full((_PANEL, _PANEL, 3), _GREY, np.uint8)
        photo = None if picture.photo is None else fitted(picture.photo, _PANEL)
        said = [picture.note] if picture.note else []
        self._panels = [] if photo is None else [photo]
        if picture.grid is not None and picture.places is not None:
            strength, range_of_it = _strength(picture.grid)
            canvas = blank if photo is None else photo
            self._panels.append(overlaid(canvas, strength, picture.places))
            said.append(range_of_it)
        self._panels = self._panels or [blank]
        self._title = _first_line(picture.title, _TITLE_FONT)
        self._note = _first_line("; ".join(said), _FONT)
        self._lines = _caption_lines(picture.captions)

    @property
    def height(self) -> float:
        """Pixels from the title to the last caption."""
        return _HEAD_HEIGHT + len(self._panels[0]) + _GAP + _LINE_HEIGHT * len(self._lines)

    def draw(self, sheet: Sheet, left: float, top: float) -> None:
        """Draw it with its top left corner there."""
        sheet.write(self._title, top, left, fontsize=_TITLE_FONT)
        sheet.write(self._note, top + _LINE_HEIGHT, left, fontsize=_SMALL_FONT, color="gray")
        top += _HEAD_HEIGHT
        for number, panel in enumerate(self._panels):
            sheet.panel(panel, left + number * (panel.shape[1] + _GAP), top, "")
        top += len(self._panels[0]) + _GAP
        # Line by line, so that their distance does not depend on the font's own.
        for number, line in enumerate(self._lines):
            sheet.write(line, top + number * _LINE_HEIGHT, left, fontsize=_FONT)


def _strength(grid: np.ndarray) -> tuple[np.ndarray, str]:
    """Energy of the cells from 0 to 1, float32 [g, g], and between which values it lies."""
    cells = energy(grid)
    weak, strong = float(cells.min()), float(cells.max())
    spread = max(strong - weak, _LEAST_CONTRAST * strong, _TINY)
    return (cells - weak) / np.float32(spread), f"energy {weak:.3g} to {strong:.3g}"


def _caption_lines(captions: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for caption in captions[:_MOST_CAPTIONS]:
        first, *more = wrap(caption, _TILE_WIDTH - _INDENT, _FONT) or [""]
        if len(more) >= _MOST_LINES:
            more = [*more[: _MOST_LINES - 2], f"{more[_MOST_LINES - 2]} …"]
        lines += [f"– {first}", *(f"   {line}" for line in more)]
    if len(captions) > _MOST_CAPTIONS:
        lines.append(f"and {len(captions) - _MOST_CAPTIONS} more")
    return lines


def _first_line(text: str, fontsize: float) -> str:
    """As much of a text as one line holds; the end of a path tells more than its beginning."""
    text = " ".join(text.split())
    if width_of(text, fontsize) <= _TILE_WIDTH:
        return text
    kept, used = "", width_of("…", fontsize)
    for letter in reversed(text):
        used += width_of(letter, fontsize)
        if used > _TILE_WIDTH:
            break
        kept = letter + kept
    return f"…{kept}"
