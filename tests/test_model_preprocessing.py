import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.preprocessing import BGR_MEANS, CHOICES, fingerprint, prepare


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
    image = prepare(tf.constant(encoded(noise())), 32)
    assert image.dtype == tf.float32
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-4)
    assert np.ptp(expected) > 100


def test_golden_pixels() -> None:
    """One colour stays one colour: R 200, G 100, B 50 → B, G, R minus the means."""
    pixels = np.full((40, 30, 3), (200, 100, 50), np.uint8)
    image = prepare(tf.constant(encoded(pixels)), 32).numpy()
    golden = np.broadcast_to(np.array([-53.939, -16.779, 76.32]), (32, 32, 3))
    np.testing.assert_allclose(image, golden, atol=1e-3)


def test_golden_resize_squashes_with_antialias() -> None:
    """Four columns of 0, 60, 120, 240 to two: triangle weights 3/7, 3/7, 1/7 at the edges."""
    columns = np.array([0, 60, 120, 240], np.uint8)
    pixels = np.broadcast_to(columns[np.newaxis, :, np.newaxis], (8, 4, 3))
    image = prepare(tf.constant(encoded(np.ascontiguousarray(pixels))), 2).numpy()
    assert image.shape == (2, 2, 3)
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    expected = (weights @ columns)[np.newaxis, :, np.newaxis] - np.array(BGR_MEANS)
    np.testing.assert_allclose(image, np.broadcast_to(expected, (2, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_eager_graph_and_tf_data_give_the_same_pixels(kind: str) -> None:
    data = encoded(noise(), kind)
    eager = prepare(tf.constant(data), 64).numpy()
    graph = tf.function(lambda image_bytes: prepare(image_bytes, 64))
    np.testing.assert_array_equal(graph(tf.constant(data)).numpy(), eager)
    dataset = tf.data.Dataset.from_tensors(data).map(lambda image_bytes: prepare(image_bytes, 64))
    np.testing.assert_array_equal(next(iter(dataset)).numpy(), eager)
    assert graph.get_concrete_function(tf.TensorSpec([], tf.string)).output_shapes == (64, 64, 3)


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_what_cannot_be_decoded_raises(data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        prepare(tf.constant(data), 32)


def test_the_fingerprint_names_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {fingerprint(224, 7), fingerprint(256, 7), fingerprint(224, 5)}
    for name in CHOICES:
        with monkeypatch.context() as patch:
            patch.setitem(CHOICES, name, "another")
            seen.add(fingerprint(224, 7))
    assert len(seen) == 3 + len(CHOICES)
    assert fingerprint(224, 7) == fingerprint(224, 7)
