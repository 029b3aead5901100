import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.preprocessing import (
    ASPECTS,
    BGR_MEANS,
    CHOICES,
    KEEP,
    SQUASH,
    choices,
    fingerprint,
    prepare,
)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def resized_columns(columns: np.ndarray, height: int, size: int = 2) -> np.ndarray:
    """A grey picture of equal rows, prepared; one value a column, the same in every row."""
    pixels = np.broadcast_to(columns[np.newaxis, :, np.newaxis], (height, len(columns), 3))
    image = prepare(tf.constant(encoded(np.ascontiguousarray(pixels))), size).image.numpy()
    assert image.shape == (size, size, 3)
    grey = image + np.array(BGR_MEANS)
    np.testing.assert_allclose(grey, np.broadcast_to(grey[:1, :, :1], grey.shape), atol=1e-3)
    return grey[0, :, 0]


def noise(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_prepared_images_are_what_resnet50_was_trained_on() -> None:
    """Golden against Keras: BGR, means removed, values not rescaled before that."""
    resized = tf.image.resize(noise(), [32, 32], method="area").numpy()
    expected = keras.applications.resnet.preprocess_input(resized.copy())
    image = prepare(tf.constant(encoded(noise())), 32).image
    assert image.dtype == tf.float32
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-4)
    assert np.ptp(expected) > 100


def test_golden_pixels() -> None:
    """One colour stays one colour: R 200, G 100, B 50 → B, G, R minus the means."""
    pixels = np.full((40, 30, 3), (200, 100, 50), np.uint8)
    image = prepare(tf.constant(encoded(pixels)), 32).image.numpy()
    golden = np.broadcast_to(np.array([-53.939, -16.779, 76.32]), (32, 32, 3))
    np.testing.assert_allclose(image, golden, atol=1e-3)


def test_golden_resize_squashes_and_averages_what_a_pixel_covers() -> None:
    """Five columns of 0, 60, 120, 240, 30 to two: each takes two and half of the third."""
    columns = np.array([0, 60, 120, 240, 30], np.uint8)
    weights = np.array([[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]]) / 5
    np.testing.assert_allclose(resized_columns(columns, height=8), weights @ columns, atol=1e-3)


@pytest.mark.parametrize("height", [1, 2, 8])
def test_golden_resize_where_a_side_grows(height: int) -> None:
    """Two columns to four: between two pixels a quarter and three; no squares."""
    grown = resized_columns(np.array([0, 200], np.uint8), height=height, size=4)
    np.testing.assert_allclose(grown, [0, 50, 150, 200], atol=1e-3)


def test_a_side_that_shrinks_beside_one_that_grows_keeps_every_pixel() -> None:
    """Sixteen columns, of which one is bright: none is skipped, wherever it stands."""
    for bright in range(16):
        columns = np.zeros(16, np.uint8)
        columns[bright] = 255
        assert resized_columns(columns, height=2, size=4).max() > 20


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_eager_graph_and_tf_data_give_the_same_pixels(kind: str, aspect: str) -> None:
    data = encoded(noise(150, 90), kind)
    eager = prepare(tf.constant(data), 64, aspect)
    graph = tf.function(lambda image_bytes: prepare(image_bytes, 64, aspect))
    dataset = tf.data.Dataset.from_tensors(data).map(graph)
    for other in (graph(tf.constant(data)), next(iter(dataset))):
        for got, expected in zip(other, eager, strict=True):
            np.testing.assert_array_equal(got.numpy(), expected.numpy())
    shapes = graph.get_concrete_function(tf.TensorSpec([], tf.string)).output_shapes
    assert tuple(shapes) == ((64, 64, 3), (2,))


@pytest.mark.parametrize(
    ("height", "width", "extent"),
    [(50, 70, (23, 32)), (70, 50, (32, 23)), (9, 9, (32, 32)), (8, 4000, (1, 32))],
)
def test_keeping_the_aspect_pads_what_the_picture_leaves(
    height: int, width: int, extent: tuple[int, int]
) -> None:
    pixels = noise(height, width)
    image, found = prepare(tf.constant(encoded(pixels)), 32, KEEP)
    assert tuple(found.numpy()) == extent
    how = {"antialias": True} if height < extent[0] or width < extent[1] else {"method": "area"}
    resized = tf.image.resize(pixels, extent, **how).numpy()[..., ::-1]
    expected = np.zeros((32, 32, 3))
    expected[: extent[0], : extent[1]] = resized - np.array(BGR_MEANS)
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(
    ("height", "width", "scale"), [(150, 90, 1), (150, 130, 2), (270, 401, 4), (1030, 1024, 8)]
)
def test_a_jpeg_is_decoded_no_larger_than_the_resize_needs(
    height: int, width: int, scale: int, aspect: str
) -> None:
    """Through the decoder's own scale, and at its true aspect ratio."""
    coarse = Image.fromarray(96 + noise(9, 9) // 4).resize((width, height))
    data = encoded(np.asarray(coarse), "JPEG")
    longer = max(height, width)
    extent = (
        (64, 64) if aspect == SQUASH else (round(height * 64 / longer), round(width * 64 / longer))
    )
    if aspect == KEEP:
        scale = max(s for s in (1, 2, 4, 8) if height // extent[0] >= s and width // extent[1] >= s)
    small = tf.io.decode_jpeg(data, ratio=scale).numpy()
    expected = tf.image.resize(small, extent, method="area").numpy()[..., ::-1]
    image, found = prepare(tf.constant(data), 64, aspect)
    assert tuple(found.numpy()) == extent
    picture = image.numpy()[: extent[0], : extent[1]]
    np.testing.assert_allclose(picture, expected - np.array(BGR_MEANS), atol=1e-3)
    whole = tf.image.resize(tf.io.decode_jpeg(data), extent, method="area").numpy()[..., ::-1]
    # The same picture as from all pixels, not one shifted or of another size.
    assert np.abs(picture - (whole - np.array(BGR_MEANS))).mean() < 1.5


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_what_cannot_be_decoded_raises(data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        prepare(tf.constant(data), 32)


def test_the_fingerprint_names_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [(224, 7, SQUASH), (256, 7, SQUASH), (224, 5, SQUASH), (224, 7, KEEP)]
    seen = {fingerprint(choices(*values)) for values in settings}
    for name in CHOICES:
        with monkeypatch.context() as patch:
            patch.setitem(CHOICES, name, "another")
            seen.add(fingerprint(choices(*settings[0])))
    assert len(seen) == len(settings) + len(CHOICES)
    assert fingerprint(choices(*settings[0])) == fingerprint(choices(*settings[0]))
    # The manifest keeps them as JSON, from which the trainer must find the same.
    assert json.loads(json.dumps(choices(*settings[0]))) == choices(*settings[0])
