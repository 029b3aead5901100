"""model/record_figures: every record has its tile, its photograph, its energy and its captions."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from model import record_figures
from model.errors import InvalidInput
from model.record_figures import Picture, draw_records, energy
from model.sheet import wrap

GRID = 7
# Cells that look at the middles of equal parts.
EVEN = np.tile((np.arange(GRID) + 0.5) / GRID, (2, 1))


def grid(row: int = 3, column: int = 5, strongest: float = 8) -> np.ndarray:
    """float16 [49, 4]: every cell of length 2, one longer."""
    cells = np.ones((GRID, GRID, 4), np.float16)
    cells[row, column] = strongest / 2
    return cells.reshape(-1, 4)


def photo(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def picture(number: int, height: int = 300, width: int = 400, captions: int = 5) -> Picture:
    texts = tuple(f"caption {index} of picture {number}" for index in range(captions))
    return Picture(f"{number}.jpg", texts, grid(), EVEN, photo(height, width))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(record_figures, "save", lambda figure, _: kept.append(figure))
    return kept


def panels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def said(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Left, bottom, right, top in pixels of every panel and text that is drawn."""
    artists = [*figure.axes, *(text for text in figure.texts if text.get_text())]
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [artist.get_window_extent(renderer) for artist in artists]
    return [(box.x0, box.y0, box.x1, box.y1) for box in found]


def test_energy_is_the_length_of_a_cell_and_does_not_overflow() -> None:
    np.testing.assert_array_equal(energy(grid(2, 6))[2], [2, 2, 2, 2, 2, 2, 8])
    huge = np.full((4, 2), 60000, np.float16)
    np.testing.assert_allclose(energy(huge), np.full((2, 2), 60000 * math.sqrt(2)), rtol=1e-3)


@pytest.mark.parametrize("cells", [0, 48])
def test_a_grid_that_is_no_square_is_refused(cells: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        energy(np.zeros((cells, 4), np.float16))
    assert str(caught.value) == f"grid of {cells} cells, expected a square such as 49"


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (30, 30), (100, 800)])
def test_the_photograph_stands_beside_its_energy(
    drawn: list[Figure], shape: tuple[int, int]
) -> None:
    draw_records([Picture("a", ("b",), grid(3, 5), EVEN, photo(*shape))], "a.png")
    plain, overlay = panels(drawn[0])
    assert (plain == 128).all()
    assert plain.shape == overlay.shape
    assert max(plain.shape) == 340
    light = overlay.astype(float).mean(axis=2)
    y, x = (index.mean() for index in np.nonzero(light >= light.max() - 2))
    assert int(y / light.shape[0] * GRID) == 3
    assert int(x / light.shape[1] * GRID) == 5


def test_an_even_grid_looks_even_and_an_empty_one_dark(drawn: list[Figure]) -> None:
    even = Picture("a", ("b",), grid(strongest=2.02), EVEN, photo(400, 400))
    empty = Picture("a", ("b",), np.zeros((49, 4), np.float16), EVEN, photo(400, 400))
    draw_records([even, empty], "a.png")
    _, nearly, _, dark = panels(drawn[0])
    assert np.ptp(nearly.astype(int).mean(axis=2)) < 30
    assert np.ptp(dark.astype(int)) == 0


def test_without_its_photograph_the_energy_stands_alone_and_says_why(
    drawn: list[Figure],
) -> None:
    lost = Picture("lost.jpg", ("b",), grid(0, 0), EVEN, None, "photograph: no such file")
    draw_records([lost], "a.png")
    (only,) = panels(drawn[0])
    assert only.shape == (340, 340, 3)
    assert only[20, 20].mean() > only[300, 300].mean() + 50
    assert "photograph: no such file; energy 2 to 8" in said(drawn[0])


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_nothing_overlaps_and_all_is_on_the_sheet(drawn: list[Figure], count: int) -> None:
    shapes = [(300, 400), (400, 200), (100, 400), (400, 400)]
    pictures = [
        picture(number, *shapes[number % 4], captions=1 + number % 7) for number in range(count)
    ]
    draw_records(pictures, "a.png")
    figure = drawn[0]
    found = boxes(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for left, bottom, right, top in found:
        assert left >= 0
        assert bottom >= 0
        assert right <= width
        assert top <= height
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            apart = (
                one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            )
            assert apart, (one, other)
    assert len(figure.axes) == 2 * count
    for number in range(count):
        assert f"{number}.jpg" in said(figure)
        assert f"– caption 0 of picture {number}" in said(figure)


def test_rows_hold_three_in_reading_order(drawn: list[Figure]) -> None:
    draw_records([picture(number) for number in range(12)], "a.png")
    places = {
        text.get_text(): text.get_position()
        for text in drawn[0].texts
        if text.get_text().endswith(".jpg")
    }
    order = sorted(places, key=lambda name: (-round(places[name][1], 6), places[name][0]))
    assert order == [f"{number}.jpg" for number in range(12)]
    assert len({round(x, 6) for x, _ in places.values()}) == 3


def widest(texts: list[Text], figure: Figure) -> float:
    renderer = FigureCanvasAgg(figure).get_renderer()
    return max(text.get_window_extent(renderer).width for text in texts)


def test_long_texts_are_wrapped_cut_and_never_wider_than_their_tile(drawn: list[Figure]) -> None:
    captions = (
        "WWWW MMMM " * 30,
        "x" * 300,
        "one two $three$ \\frac{ four " * 6,
        "short",
        "a\nb\tc",
        *("more",) * 4,
    )
    draw_records([Picture("folder/" * 40 + "end.jpg", captions, grid(), EVEN, None)], "a.png")
    figure = drawn[0]
    assert widest(figure.texts, figure) <= 690
    lines = said(figure)
    assert lines[0].startswith("…")
    assert lines[0].endswith("/end.jpg")
    assert sum(line.endswith(" …") for line in lines) == 2
    assert "– short" in lines
    assert "– a b c" in lines
    assert "and 3 more" in lines
    of_x = [line for line in lines if set(line.strip("– …")) == {"x"}]
    assert [line[:3] for line in of_x] == ["– x", "   ", "   "]
    assert min(line.count("x") for line in of_x) > 50


def test_wrapping_keeps_every_word() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 5
    lines = wrap(text, 200, 8)
    assert " ".join(lines).split() == text.split()
    assert len(lines) > 5
    assert wrap("", 200, 8) == []


def test_any_script_is_drawn_into_a_file(tmp_path: Path) -> None:
    captions = ("日本の犬", "🐕 привет", "half <unk> $ ^_^", "")
    draw_records([Picture("ü.jpg", captions, grid(), EVEN, photo(300, 400))], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "PNG"
        assert opened.width > 700


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^no record to draw, expected at least one$"):
        draw_records([], tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        draw_records([picture(1)], tmp_path / "missing" / "a.png")
