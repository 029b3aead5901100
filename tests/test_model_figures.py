"""model/figures: the light falls where the weights are, and the curves hold the rows."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from model import figures
from model.encoder import cell_centres
from model.errors import InvalidInput
from model.figures import COLUMNS, draw_attention, draw_history

GRID = 7
GREY = 128
# Cells that look at the middles of equal parts.
EVEN = np.tile((np.arange(GRID) + 0.5) / GRID, (2, 1))


def photo(height: int = 240, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def peak(row: int, column: int, grid: int = GRID) -> np.ndarray:
    """Attention [P] with 94 % or so in one cell and the rest everywhere."""
    weights = np.full((grid, grid), 0.06 / grid**2, np.float32)
    weights[row, column] += 0.94
    return weights.ravel()


def runs(flags: np.ndarray, shortest: int) -> list[tuple[int, int]]:
    """Start and end of each run of True at least so long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= shortest]


def panels_of(path: Path) -> list[list[np.ndarray]]:
    """The drawn panels, row by row: what is not white paper and too big for text."""
    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB"))
    ink = picture.min(axis=2) < 250
    rows = runs(ink.mean(axis=1) > 0.15, 60)
    return [
        [picture[top:bottom, left:right] for left, right in runs(ink[top:bottom].all(axis=0), 20)]
        for top, bottom in rows
    ]


def brightest(panel: np.ndarray) -> tuple[float, float]:
    """Centre (y, x) of the brightest pixels, as fractions of the panel."""
    light = panel.astype(float).mean(axis=2)
    ys, xs = np.nonzero(light >= light.max() - 2)
    return (ys.mean() + 0.5) / light.shape[0], (xs.mean() + 0.5) / light.shape[1]


@pytest.mark.parametrize("shape", [(240, 400), (400, 240), (30, 30), (1000, 1500)])
def test_each_word_shines_where_its_attention_is(tmp_path: Path, shape: tuple[int, int]) -> None:
    cells = [(0, 0), (0, 6), (6, 0), (2, 5)]
    attention = np.stack([peak(*cell) for cell in cells])
    draw_attention(photo(*shape), ["a", "b", "c", "d"], attention, EVEN, tmp_path / "a.png")
    ((first, *others),) = panels_of(tmp_path / "a.png")
    assert (first == GREY).all()
    assert first.shape[0] / first.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.01)
    assert len(others) == len(cells)
    for panel, (row, column) in zip(others, cells, strict=True):
        assert panel.shape == first.shape
        y, x = brightest(panel)
        assert row / GRID <= y <= (row + 1) / GRID
        assert column / GRID <= x <= (column + 1) / GRID


@pytest.mark.parametrize("cell", [(0, 0), (3, 5), (6, 6)])
def test_a_word_shines_where_its_cell_looks(tmp_path: Path, cell: tuple[int, int]) -> None:
    """A grid over the upper left part of the photograph, as ResNet50's cells look at it."""
    places = np.stack([np.linspace(0.1, 0.7, GRID), np.linspace(0.05, 0.95, GRID)])
    draw_attention(photo(400, 400), ["a"], peak(*cell)[None], places, tmp_path / "a.png")
    ((_, word),) = panels_of(tmp_path / "a.png")
    light = word.astype(float).mean(axis=2)
    row, column = (round(float(places[axis][at]) * 400) for axis, at in enumerate(cell))
    at_the_cell = light[row - 2 : row + 2, column - 2 : column + 2].mean()
    assert at_the_cell >= light.max() - 15
    # Half a cell away it is half as strong.
    if 0 < cell[0] < GRID - 1:
        assert light[row + 20, column] < (at_the_cell + light.min()) / 2 + 20
        assert brightest(word) == pytest.approx((places[0][cell[0]], places[1][cell[1]]), abs=0.01)


def test_cells_that_look_at_one_place_share_it(tmp_path: Path) -> None:
    """Of a panorama of 96 pixels' height, seven rows of cells look from three places."""
    places = np.stack([cell_centres(96, GRID), cell_centres(224, GRID)])
    assert len(np.unique(places[0])) < GRID
    same = np.flatnonzero(places[0] == places[0][0])
    attention = np.stack([peak(int(row), 3) for row in (same[0], same[-1], GRID - 1)])
    draw_attention(photo(170, 400), ["a", "b", "c"], attention, places, tmp_path / "a.png")
    ((_, first, second, last),) = panels_of(tmp_path / "a.png")
    np.testing.assert_array_equal(first, second)
    assert brightest(first)[0] < 0.2
    assert brightest(last)[0] > 0.6


def test_the_photograph_is_shown_as_it_is(tmp_path: Path) -> None:
    image = photo(400, 400)
    image[:200, :200] = (200, 30, 60)
    draw_attention(image, ["a"], peak(0, 0)[None], EVEN, tmp_path / "a.png")
    first, word = panels_of(tmp_path / "a.png")[0]
    np.testing.assert_array_equal(first, image)
    # Where the word does not look, the photograph is still to be seen, dim and grey.
    assert GREY * 0.3 < word[300, 300].mean() < GREY * 0.7


def test_black_and_white_photographs_hide_nothing(tmp_path: Path) -> None:
    image = photo(400, 400)
    image[:, :200], image[:, 200:] = 0, 255
    draw_attention(image, ["a"], peak(3, 0)[None], EVEN, tmp_path / "a.png")
    y, x = brightest(panels_of(tmp_path / "a.png")[0][1])
    assert x < 1 / GRID
    assert 3 / GRID < y < 4 / GRID


def test_even_attention_looks_even_and_weak(tmp_path: Path) -> None:
    even = np.full(GRID**2, 1 / GRID**2, np.float32)
    even[0] *= 1.05
    draw_attention(
        photo(), ["even", "sharp"], np.stack([even, peak(0, 0)]), EVEN, tmp_path / "a.png"
    )
    _, flat, sharp = panels_of(tmp_path / "a.png")[0]
    assert np.ptp(flat.astype(int).mean(axis=2)) < 10
    assert flat.max() < sharp.max() / 2


def test_rows_hold_five_panels_so_that_the_width_is_bounded(tmp_path: Path) -> None:
    for count in (4, 11, 30):
        cells = [(i % GRID, i // GRID) for i in range(count)]
        attention = np.stack([peak(*cell) for cell in cells])
        draw_attention(photo(300, 400), ["word"] * count, attention, EVEN, tmp_path / "a.png")
        rows = panels_of(tmp_path / "a.png")
        sizes = [len(row) for row in rows]
        assert len(sizes) == math.ceil((count + 1) / COLUMNS)
        assert sizes[:-1] == [COLUMNS] * (len(sizes) - 1)
        assert sum(sizes) == count + 1
        # Reading order: left to right, then down.
        y, x = brightest(rows[-1][-1])
        assert (int(y * GRID), int(x * GRID)) == cells[-1]
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width <= COLUMNS * 420 + 60


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, _: kept.append(figure))
    return kept


def test_titles_are_words_with_their_peak_and_the_caption_stands_above(
    drawn: list[Figure],
) -> None:
    words = ["a", "man", "'s", "extraordinarily-long-hyphenated", "hat"]
    attention = np.stack([peak(0, i) for i in range(5)])
    attention[0] = 1 / GRID**2
    draw_attention(photo(), words, attention, EVEN, "a.png")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["", "a  2%", "man  94%", "'s  94%", "extraordinarily-l…  94%", "hat  94%"]
    assert drawn[0].texts[0].get_text().replace("\n", " ") == (
        "a man's extraordinarily-long-hyphenated hat"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["$", "\\frac{", "$"],
        ["$\\frac{$", "$5"],
        ["日本", "🐕", "привет"],
        ["<unk>", "^_^", ""],
        [],
    ],
)
def test_any_word_can_be_drawn(tmp_path: Path, words: list[str]) -> None:
    attention = np.full((len(words), 49), 1 / 49, np.float32)
    draw_attention(photo(), words, attention, EVEN, tmp_path / "a.png")
    panels = panels_of(tmp_path / "a.png")
    assert sum(map(len, panels)) == len(words) + 1


@pytest.mark.parametrize("shape", [(8, 4000), (4000, 8), (1, 1), (8, 8)])
def test_photographs_of_any_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    draw_attention(photo(*shape), ["a"], peak(1, 1)[None], EVEN, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < 2200
        assert picture.height < 800


GOOD = np.full((2, 49), 1 / 49, np.float32)


@pytest.mark.parametrize(
    ("image", "attention", "message"),
    [
        (photo(), GOOD[:1], r"attention \[1, 49\] for 2 words"),
        (photo(), GOOD[0], r"attention \[49\] for 2 words"),
        (photo(), GOOD[:, :48], "over 48 cells, expected a square"),
        (photo(), GOOD[:, :0], "over 0 cells, expected a square"),
        (photo(), GOOD * np.float32("nan"), "below 0 or not finite"),
        (photo(), -GOOD, "below 0 or not finite"),
        (photo().astype(np.float32), GOOD, r"image float32 \[240, 400, 3\], expected uint8"),
        (photo()[..., 0], GOOD, r"image uint8 \[240, 400\]"),
        (photo()[:0], GOOD, r"image uint8 \[0, 400, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, image: np.ndarray, attention: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw_attention(image, ["a", "dog"], attention, EVEN, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("places", [EVEN[:, 1:], EVEN[0], EVEN[:, ::-1], EVEN * np.nan])
def test_places_that_are_not_those_of_the_grid_are_refused(
    tmp_path: Path, places: np.ndarray
) -> None:
    with pytest.raises(InvalidInput, match="for a grid of 7 rows and columns"):
        draw_attention(photo(), ["a"], GOOD[:1], places, tmp_path / "a.png")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draw_attention(photo(), ["a"], GOOD[:1], EVEN, tmp_path / "missing" / "a.png")


def points_of(figure: Figure, index: int) -> list[list[float]]:
    return np.asarray(figure.axes[index].lines[0].get_xydata()).tolist()


def test_history_holds_the_rows_by_step_and_marks_the_best(drawn: list[Figure]) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 10, "loss": 4.0, "val_cider": 0.2},
        {"step": 30, "loss": 2.0, "val_cider": 0.7},
        {"step": 20, "loss": 9.0, "val_cider": 0.9, "best": True},
        {"step": 20, "loss": 3.0},
        {"step": 40, "loss": float("nan"), "val_cider": None},
    ]
    draw_history(rows, "a.png")
    loss, cider = drawn[0].axes
    assert points_of(drawn[0], 0) == [[10, 4], [20, 3], [30, 2]]
    assert points_of(drawn[0], 1) == [[10, 0.2], [20, 0.9], [30, 0.7]]
    assert cider.get_title(loc="right") == "best 0.900 at step 20"
    assert np.asarray(cider.lines[1].get_xydata()).tolist() == [[20, 0.9]]
    assert (loss.get_ylabel(), cider.get_ylabel()) == ("training loss", "validation CIDEr-D")


def test_history_without_validation_is_one_curve(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_history([{"step": 1, "loss": 4.0}], tmp_path / "a.png")
    assert len(drawn[0].axes) == 1
    assert points_of(drawn[0], 0) == [[1, 4]]


def test_history_is_written(tmp_path: Path) -> None:
    draw_history([{"step": s, "loss": 4.0, "val_cider": 0.1} for s in (1, 2)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}]])
def test_history_with_nothing_to_draw(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidInput, match="no losses or scores"):
        draw_history(rows, tmp_path / "a.png")


def test_pyplot_is_left_alone() -> None:
    code = "import sys, model.figures; print('matplotlib.pyplot' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
