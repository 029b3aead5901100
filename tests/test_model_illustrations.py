"""What TensorBoard shows of a run: its scalars, and pictures of captions and attention."""

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.summary.summary_iterator import summary_iterator

from model.decoding import Prediction
from model.errors import InvalidInput
from model.illustrations import PANEL, PICTURES, Illustrator
from model.places import places
from model.preprocessing import SQUASH
from model.records import Manifest
from model.run import Run
from model.trainer import Trainer
from tests import tiny
from tests.trainer_fixtures import make_run, silent

VOCABULARY = tiny.make_vocabulary()
SIDE, KEY = 3, "image-0.jpg"


class Geometry(NamedTuple):
    """As much of a manifest as says where cells look."""

    image_size: int = 32 * SIDE
    grid_shape: tuple[int, int] = (SIDE**2, 8)
    aspect: str = SQUASH


MANIFEST: Any = Geometry()
NUMBERS = (
    *("loss", "cross_entropy", "gradient_norm", "learning_rate"),
    *("captions_per_s", "input_wait"),
)


def written(caption: str, *peaks: tuple[int, int], key: str = KEY) -> Prediction:
    """A caption whose words look at a row and a column each."""
    tokens = tuple(VOCABULARY.encode(caption))
    attention = np.full((len(tokens), SIDE, SIDE), 0.01, np.float32)
    for weights, (row, column) in zip(attention, peaks, strict=True):
        weights[row, column] = 0.92
    flat = attention.reshape(len(tokens), SIDE * SIDE)
    return Prediction(key, caption, -1.25, ("A dog.", "Some dog"), tokens, 1.0, flat)


def panels_of(picture: np.ndarray) -> list[list[np.ndarray]]:
    """The drawn panels, row by row: what is not white paper and too big for text."""
    ink = picture.min(axis=2) < 250
    rows = _runs(ink[:, 30 : 30 + PANEL // 2].all(axis=1), 60)
    return [
        [picture[top:bottom, left:right] for left, right in _runs(ink[top:bottom].all(axis=0), 60)]
        for top, bottom in rows
    ]


def _runs(flags: np.ndarray, shortest: int) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= shortest]


def brightest(panel: np.ndarray) -> tuple[int, int]:
    """Row and column of the cell that looks at the brightest pixels."""
    light = panel.astype(float).mean(axis=2)
    ys, xs = np.nonzero(light >= light.max() - 2)
    height, width = light.shape
    looked_at = places((height, width), MANIFEST)
    found = (ys.mean() + 0.5) / height, (xs.mean() + 0.5) / width
    row, column = (
        int(np.abs(at - place).argmin()) for at, place in zip(looked_at, found, strict=True)
    )
    return row, column


def save_photograph(path: Path, width: int, height: int, split_at: int) -> None:
    """Red, and blue from a column on."""
    pixels = np.full((height, width, 3), (200, 0, 0), np.uint8)
    pixels[:, split_at:] = (0, 0, 200)
    Image.fromarray(pixels).save(path)


def test_each_word_shines_where_it_looked() -> None:
    cells = [(0, 0), (0, 2), (2, 0), (1, 1), (2, 1), (0, 1), (1, 2), (1, 0), (2, 2)]
    caption = "one dog runs on the green grass today flowers"
    first, second = panels_of(Illustrator(VOCABULARY, MANIFEST).draw(written(caption, *cells)))
    assert (len(first), len(second)) == (8, 1)
    assert [panel.shape for panel in first + second] == [(PANEL, PANEL, 3)] * 9
    assert [brightest(panel) for panel in first + second] == cells


def test_captions_words_and_references_are_written() -> None:
    """Another word, log-probability, key or reference is another picture; the same is the same."""
    plain = written("a dog", (0, 0), (1, 1))
    others = [
        written("a bird", (0, 0), (1, 1)),
        written("a dog", (0, 0), (1, 1), key="image-1.jpg"),
        Prediction(**{**vars(plain), "log_prob": -1.5}),
        Prediction(**{**vars(plain), "references": ("A dog.", "Some hat")}),
        written("a dog", (0, 0), (1, 2)),
    ]
    draw = Illustrator(VOCABULARY, MANIFEST).draw
    picture = draw(plain)
    np.testing.assert_array_equal(picture, draw(written("a dog", (0, 0), (1, 1))))
    for other in others:
        drawn = draw(other)
        assert drawn.shape == picture.shape
        assert (drawn != picture).any()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (80, 160), (2000, 400)])
def test_maps_lie_over_the_photograph(tmp_path: Path, width: int, height: int) -> None:
    save_photograph(tmp_path / KEY, width, height, width // 4)
    picture = Illustrator(VOCABULARY, MANIFEST, tmp_path).draw(written("a dog", (0, 2), (2, 1)))
    longer = max(width, height)
    expected = (round(height * PANEL / longer), round(width * PANEL / longer), 3)
    ink = picture.min(axis=2) < 250
    # Panels of a panorama are too low for `panels_of`.
    bottom = int(np.flatnonzero(ink.mean(axis=1) > 0.05)[-1]) + 1
    rows = slice(bottom - expected[0], bottom)
    columns = _runs(ink[rows].all(axis=0), expected[1])
    photo, first, second = (picture[rows, left:right] for left, right in columns)
    assert photo.shape == first.shape == second.shape == expected
    middle = photo[expected[0] // 2]
    assert middle[2].argmax() == 0
    assert middle[expected[1] // 2].argmax() == 2
    assert (brightest(first), brightest(second)) == ((0, 2), (2, 1))


def test_the_record_of_a_mirror_image_shows_it_mirrored(tmp_path: Path) -> None:
    save_photograph(tmp_path / KEY, 200, 200, 50)
    draw = Illustrator(VOCABULARY, MANIFEST, tmp_path).draw
    ((photo, _),) = panels_of(draw(written("dog", (0, 0), key=KEY)))
    ((mirrored, _),) = panels_of(draw(written("dog", (0, 0), key=f"{KEY}#flip")))
    np.testing.assert_array_equal(mirrored, photo[:, ::-1])


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_without_the_photograph_the_maps_are_drawn(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / KEY).write_bytes(content)
    prediction = written("a dog", (0, 2), (2, 1))
    alone = Illustrator(VOCABULARY, MANIFEST).draw(prediction)
    told = Illustrator(VOCABULARY, MANIFEST, tmp_path).draw(prediction)
    assert (told != alone).any()
    for panels in (panels_of(alone), panels_of(told)):
        assert [brightest(panel) for panel in panels[0]] == [(0, 2), (2, 1)]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--images .*none: no such directory, expected the ph"):
        Illustrator(VOCABULARY, MANIFEST, tmp_path / "none")


def test_a_caption_without_a_word_and_one_with_a_long_word() -> None:
    empty = Illustrator(VOCABULARY, MANIFEST).draw(
        Prediction(KEY, "", -9.0, (), (), None, np.zeros((0, 9)))
    )
    assert panels_of(empty) == []
    long_word = "donaudampfschifffahrtsgesellschaft"
    vocabulary = type(VOCABULARY).build({long_word: 1, "dog": 1}, 1)
    tokens = tuple(vocabulary.encode(f"{long_word} dog"))
    attention = written("a dog", (0, 0), (2, 2)).attention
    picture = Illustrator(vocabulary, MANIFEST).draw(
        Prediction(KEY, "", 0.0, (), tokens, 1.0, attention)
    )
    ((first, second),) = panels_of(picture)
    assert (brightest(first), brightest(second)) == ((0, 0), (2, 2))
    # Nothing of the long word's title stands between the panels.
    gap = picture[:, 24 + PANEL + 1 : 24 + PANEL + 9]
    assert (gap[picture.shape[0] - 24 - PANEL - 40 :] == 255).all()


class Events(NamedTuple):
    """Values by step and tag."""

    scalars: dict[int, dict[str, float]]
    pictures: dict[int, dict[str, bytes]]


def read_events(run: Run) -> Events:
    scalars: dict[int, dict[str, float]] = defaultdict(dict)
    pictures: dict[int, dict[str, bytes]] = defaultdict(dict)
    for path in (run.model_dir / "events").iterdir():
        for event in summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                if value.metadata.plugin_data.plugin_name == "images":
                    # Width, height, then the files.
                    assert len(content) == 3
                    pictures[event.step][value.tag] = content[2]
                else:
                    scalars[event.step][value.tag] = float(content)
    return Events(scalars, pictures)


@pytest.fixture(scope="module", name="trained")
def fixture_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Run]:
    """Two validations of seven images, weights averaged, one photograph at hand."""
    root = tmp_path_factory.mktemp("run")
    (root / "photographs").mkdir()
    save_photograph(root / "photographs" / "image-1.jpg", 90, 60, 30)
    run = make_run(root, "model", 4, ("validation_steps", 2), ("ema_decay", 0.5))
    run = Run(**{**vars(run), "images": root / "photographs"})
    trainer = Trainer(run)
    trainer.fit(silent)
    return trainer, run


def test_scalars_are_the_numbers_of_the_history(trained: tuple[Trainer, Run]) -> None:
    _, run = trained
    rows = [json.loads(line) for line in (run.model_dir / "history.jsonl").read_text().splitlines()]
    scalars = read_events(run).scalars
    assert list(scalars) == [row["step"] for row in rows] == [2, 4]
    for row in rows:
        expected: dict[str, Any] = {f"training/{name}": row[name] for name in NUMBERS}
        expected["validation/cider"] = row["val_cider"]
        assert scalars[row["step"]] == pytest.approx(expected, rel=1e-6)


def test_a_handful_of_pictures_at_each_validation(trained: tuple[Trainer, Run]) -> None:
    trainer, run = trained
    manifest = Manifest.load(run.records)
    pictures = read_events(run).pictures
    tags = [f"captions/image-{number}.jpg" for number in range(PICTURES)]
    assert {step: list(found) for step, found in pictures.items()} == {2: tags, 4: tags}
    # Training went on between them.
    assert all(pictures[2][tag] != pictures[4][tag] for tag in tags)
    split = trainer._validation_split
    assert split is not None
    with trainer.averages.applied():
        predictions = list(trainer._writer.predictions(split, 4, PICTURES))
    for prediction in predictions:
        with Image.open(io.BytesIO(pictures[4][f"captions/{prediction.key}"])) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert 300 < image.width < 2000
            assert 80 < image.height < 2000
            found = np.asarray(image)
        directory = run.images if prediction.key == "image-1.jpg" else None
        alone = Illustrator(VOCABULARY, manifest, directory).draw(prediction)
        told = Illustrator(VOCABULARY, manifest, run.images).draw(prediction)
        np.testing.assert_array_equal(found, told)
        assert (told == alone).all() == (prediction.key == "image-1.jpg")


def test_fewer_images_give_fewer_pictures(tmp_path: Path) -> None:
    predictions = [written("dog", (0, 0), key=f"{number}.jpg") for number in range(2)]
    writer = tf.summary.create_file_writer(str(tmp_path / "events"))
    with writer.as_default():
        Illustrator(VOCABULARY, MANIFEST).write(predictions, 7)
    writer.close()
    events = read_events(Run(tmp_path, tmp_path, None, None))  # type: ignore[arg-type]
    assert {step: list(found) for step, found in events.pictures.items()} == {
        7: ["captions/0.jpg", "captions/1.jpg"]
    }
