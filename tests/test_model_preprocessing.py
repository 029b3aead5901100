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


def noise(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_prepared_images_are_what_resnet50_was_trained_on() -> None:
    """Golden against Keras: BGR, means removed, values not rescaled before that."""
    resized = tf.image.resize(noise(), [32, 32], antialias=True).numpy()
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


def test_golden_resize_squashes_with_antialias() -> None:
    """Four columns of 0, 60, 120, 240 to two: triangle weights 3/7, 3/7, 1/7 at the edges."""
    columns = np.array([0, 60, 120, 240], np.uint8)
    pixels = np.broadcast_to(columns[np.newaxis, :, np.newaxis], (8, 4, 3))
    image = prepare(tf.constant(encoded(np.ascontiguousarray(pixels))), 2).image.numpy()
    assert image.shape == (2, 2, 3)
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    expected = (weights @ columns)[np.newaxis, :, np.newaxis] - np.array(BGR_MEANS)
    np.testing.assert_allclose(image, np.broadcast_to(expected, (2, 2, 3)), atol=1e-3)


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
    resized = tf.image.resize(pixels, extent, antialias=True).numpy()[..., ::-1]
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
    expected = tf.image.resize(small, extent, antialias=True).numpy()[..., ::-1]
    image, found = prepare(tf.constant(data), 64, aspect)
    assert tuple(found.numpy()) == extent
    picture = image.numpy()[: extent[0], : extent[1]]
    np.testing.assert_allclose(picture, expected - np.array(BGR_MEANS), atol=1e-3)
    whole = tf.image.resize(tf.io.decode_jpeg(data), extent, antialias=True).numpy()[..., ::-1]
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
