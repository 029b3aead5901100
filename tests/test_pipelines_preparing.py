"""The pipeline's way to do what `prepare` does: the same bits, from any thread, errors included."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.preprocessing import ASPECTS, KEEP, normalise_into, prepare
from pipelines.preparing import Preparer, shared_preparer

SIZE = 32


def encoded(height: int, width: int, kind: str) -> bytes:
    coarse = np.random.default_rng(height).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, kind)
    return file.getvalue()


# Every scale of the JPEG decoder, enlarging, and what is no JPEG.
FILES = [
    encoded(height, width, kind)
    for height, width, kind in (
        *((40, 48, "JPEG"), (70, 90, "JPEG"), (140, 130, "JPEG"), (300, 260, "JPEG")),
        *((16, 60, "JPEG"), (70, 90, "PNG")),
    )
]


@pytest.mark.parametrize("aspect", ASPECTS)
def test_images_are_those_of_prepare_to_the_bit(aspect: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Preparer(SIZE, aspect), FILES * 5))
    for data, picture in zip(FILES * 5, found, strict=True):
        # What another image left there must not show in the padding.
        image = np.full((SIZE, SIZE, 3), np.nan, np.float32)
        expected = prepare(tf.constant(data), SIZE, aspect)
        extent = normalise_into(picture, image)
        np.testing.assert_array_equal(image, expected.image.numpy())
        assert list(extent) == expected.extent.numpy().tolist()
        assert (picture.dtype, picture.shape) == (np.float32, (*extent, 3))


# One upright, one lying: padding right of it, and below it.
@pytest.mark.parametrize("data", [FILES[3], FILES[4]])
def test_a_mirrored_picture_is_mirrored_inside_its_extent(data: bytes) -> None:
    upright, mirrored = np.full((2, SIZE, SIZE, 3), np.nan, np.float32)
    picture = shared_preparer(SIZE, KEEP)(data)
    height, width = normalise_into(picture, upright)
    assert min(height, width) < SIZE
    assert normalise_into(picture[:, ::-1], mirrored) == (height, width)
    np.testing.assert_array_equal(mirrored[:height, :width], upright[:height, :width][:, ::-1])
    assert (mirrored[height:] == 0).all()
    assert (mirrored[:, width:] == 0).all()


def test_a_picture_is_the_caller_s_own() -> None:
    preparer = shared_preparer(SIZE, ASPECTS[0])
    first = preparer(FILES[0]).copy()
    preparer(FILES[0])[:] = 7
    kept = preparer(FILES[0])
    preparer(FILES[1])
    np.testing.assert_array_equal(kept, first)


def test_what_tensorflow_cannot_decode() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        shared_preparer(SIZE, ASPECTS[0])(b"no image")


def test_settings_have_preparers_of_their_own() -> None:
    squash, keep = (shared_preparer(SIZE, aspect)(FILES[4]) for aspect in ASPECTS)
    assert squash.shape == (SIZE, SIZE, 3)
    assert keep.shape != (SIZE, SIZE, 3)
    assert shared_preparer(SIZE, ASPECTS[0]) is shared_preparer(SIZE, ASPECTS[0])
