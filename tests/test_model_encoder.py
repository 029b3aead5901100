from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from model.encoder import (
    STRIDE,
    Encoder,
    EncoderSettings,
    _pooling_matrix,
    _pooling_table,
    cell_centres,
)
from model.errors import InvalidInput
from model.preprocessing import KEEP

SETTINGS = EncoderSettings("random:0", 64, 2)
IMAGES = np.random.default_rng(0).normal(0, 65, (3, 64, 64, 3)).astype(np.float32)

# Keras under NumPy 2 writes weights with a copy keyword that TensorFlow does not know.
WRITES_WEIGHTS = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SETTINGS)


def test_the_compiled_graph_is_the_network(encoder: Encoder) -> None:
    expected = encoder.network(IMAGES, training=False).numpy().reshape(3, 4, 2048)
    np.testing.assert_allclose(encoder(IMAGES).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert encoder.grid_shape == (4, 2048)


def test_cells_are_row_major(encoder: Encoder) -> None:
    """What changes in the bottom left corner changes cell 2 most."""
    changed = IMAGES.copy()
    changed[:, 44:, :20] += 80
    difference = np.abs(encoder(changed).numpy() - encoder(IMAGES).numpy()).mean((0, 2))
    assert difference.argmax() == 2


def test_a_cell_looks_around_the_pixel_it_is_said_to() -> None:
    """What a speck changes weighs as much left of it as right of it, above it as below it."""
    side, cells = 224, 7
    network = Encoder(EncoderSettings("random:0", side, cells)).network
    specks = [(3, 3), (3, 4), (2, 5)]
    images = np.zeros((1 + len(specks), side, side, 3), np.float32)
    for image, (row, column) in zip(images[1:], specks, strict=True):
        top, left = row * STRIDE, column * STRIDE
        image[top - 4 : top + 5, left - 4 : left + 5] = 100
    plain, *others = network(images, training=False).numpy().astype(np.float64)
    for (row, column), found in zip(specks, others, strict=True):
        changed = np.square(found - plain).sum(axis=-1)
        centres = cell_centres(side, cells) * side
        middle = [changed.sum(axis=1 - axis) @ centres / changed.sum() for axis in (0, 1)]
        np.testing.assert_allclose(middle, [row * STRIDE + 0.5, column * STRIDE + 0.5], atol=4)


def test_pooled_cells_look_at_the_mean_of_what_they_average() -> None:
    np.testing.assert_allclose(cell_centres(96, 3), np.array([0.5, 32.5, 64.5]) / 96)
    np.testing.assert_allclose(cell_centres(128, 2), np.array([16.5, 80.5]) / 128)
    np.testing.assert_allclose(cell_centres(64, 3), np.array([0.5, 16.5, 32.5]) / 64)
    # A last, narrow cell is one all the same.
    np.testing.assert_allclose(cell_centres(65, 3), np.array([0.5, 32.5, 64.5]) / 65)


def test_a_grid_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    together = encoder(IMAGES).numpy()
    alone = np.concatenate([encoder(image[np.newaxis]).numpy() for image in IMAGES])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_batch_normalisation_keeps_its_statistics(encoder: Encoder) -> None:
    before = [weight.numpy() for weight in encoder.network.weights]
    encoder(IMAGES * 100)
    for weight, value in zip(encoder.network.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert not encoder.network.trainable_weights


def test_random_grids_fit_float16_and_tell_images_apart(encoder: Encoder) -> None:
    grids = encoder(IMAGES).numpy()
    assert 0.1 < grids.mean() < 10
    assert grids.max() < 100
    black, white = (np.full((1, 64, 64, 3), value, np.float32) for value in (-110, 140))
    assert np.abs(encoder(black).numpy() - encoder(white).numpy()).mean() > 0.2


def test_a_seed_decides_all_weights(encoder: Encoder) -> None:
    assert Encoder(SETTINGS).digest == encoder.digest
    assert Encoder(EncoderSettings("random:1", 64, 2)).digest != encoder.digest
    # Golden: the same on every machine, or records of two machines would not go together.
    assert encoder.digest.startswith("75671fd66fe8587c")


@WRITES_WEIGHTS
def test_weights_of_a_file_are_those_weights(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "resnet50.weights.h5"
    encoder.network.save_weights(path)
    loaded = Encoder(EncoderSettings(str(path), 64, 2))
    assert loaded.digest == encoder.digest
    np.testing.assert_array_equal(loaded(IMAGES).numpy(), encoder(IMAGES).numpy())


def test_a_smaller_grid_is_the_mean_of_its_cells(encoder: Encoder) -> None:
    pooled = Encoder(EncoderSettings("random:0", 64, 1))(IMAGES).numpy()
    expected = encoder(IMAGES).numpy().mean(1, keepdims=True)
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-4)


def test_pooling_over_more_cells_than_there_are_repeats_some() -> None:
    np.testing.assert_allclose(_pooling_matrix(2, 3), np.array([[1, 0], [0.5, 0.5], [0, 1]]))
    table = _pooling_table(3, 2)
    np.testing.assert_allclose(table[1], [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(table[3], _pooling_matrix(3, 2))


def test_pooling_covers_every_cell() -> None:
    expected = [[0.5, 0.5, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(_pooling_matrix(5, 3), expected, atol=1e-6)
    np.testing.assert_array_equal(_pooling_matrix(7, 7), np.eye(7))


def test_with_the_aspect_kept_the_grid_covers_the_picture_alone() -> None:
    """96 pixels are 3×3 native cells; a picture of 96×40 touches 3×2 of them."""
    keeping = Encoder(EncoderSettings("random:0", 96, 3, KEEP))
    images = np.zeros((2, 96, 96, 3), np.float32)
    images[0, :, :40] = np.random.default_rng(1).normal(0, 65, (96, 40, 3))
    images[1] = np.random.default_rng(2).normal(0, 65, (96, 96, 3))
    native = keeping.network(images, training=False).numpy()
    grids = keeping(images, np.array([[96, 40], [96, 96]], np.int32)).numpy().reshape(2, 3, 3, -1)
    left, right = native[0, :, 0], native[0, :, 1]
    expected = np.stack([left, (left + right) / 2, right], axis=1)
    np.testing.assert_allclose(grids[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grids[1], native[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("image_size", "native"), [(32, 1), (33, 2), (100, 4), (200, 7)])
def test_any_image_size_makes_a_grid(image_size: int, native: int) -> None:
    settings = EncoderSettings("random:0", image_size, native)
    assert settings.native_size == native
    shape = (None, image_size, image_size, 3)
    network = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape[1:])
    assert network.output_shape == (None, native, native, 2048)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 31}, "image_size 31, expected at least 32 pixels"),
        ({"grid_size": 8}, "grid_size 8, expected 1 to 7 for image_size 224; raise --image_size"),
        (
            {"image_size": 97, "grid_size": 5},
            "grid_size 5, expected 1 to 4 for image_size 97; raise",
        ),
        ({"grid_size": 0}, "grid_size 0, expected 1 to 7 for image_size 224"),
    ],
)
def test_settings_that_make_no_grid_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        EncoderSettings("random:0", **fields)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("weights", ["random:", "random:x", "random:-1"])
def test_a_seed_is_a_number(weights: str) -> None:
    with pytest.raises(InvalidInput, match="expected random:SEED"):
        Encoder(EncoderSettings(weights, 64, 2))


@WRITES_WEIGHTS
def test_weights_that_are_not_there_or_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.h5': no such file, expected imagenet, random:"):
        Encoder(EncoderSettings(str(tmp_path / "none.h5"), 64, 2))
    path = tmp_path / "text.weights.h5"
    path.write_text("no weights")
    with pytest.raises(InvalidInput, match="not the weights of ResNet50 without top"):
        Encoder(EncoderSettings(str(path), 64, 2))
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    path = tmp_path / "small.weights.h5"
    small.save_weights(path)
    with pytest.raises(InvalidInput, match="not the weights of ResNet50 without top"):
        Encoder(EncoderSettings(str(path), 64, 2))


def test_imagenet_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(**_: Any) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "ResNet50", no_network)
    with pytest.raises(InvalidInput) as caught:
        Encoder(EncoderSettings())
    assert str(caught.value) == (
        "ImageNet weights could not be downloaded (URL fetch failure); pass a weights file or "
        "random:SEED as --encoder_weights"
    )
