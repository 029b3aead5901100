"""The pipeline's way to run `prepare`: the same bits, from any thread, errors included."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.preprocessing import ASPECTS, prepare
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
    for data, (image, extent) in zip(FILES * 5, found, strict=True):
        expected = prepare(tf.constant(data), SIZE, aspect)
        np.testing.assert_array_equal(image, expected.image.numpy())
        np.testing.assert_array_equal(extent, expected.extent.numpy())
        assert (image.dtype, extent.dtype) == (np.float32, np.int32)


def test_an_image_is_the_caller_s_own() -> None:
    preparer = shared_preparer(SIZE, ASPECTS[0])
    first = preparer(FILES[0]).image.copy()
    preparer(FILES[0]).image[:] = 7
    kept = preparer(FILES[0])
    preparer(FILES[1])
    np.testing.assert_array_equal(kept.image, first)


def test_what_tensorflow_cannot_decode() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        shared_preparer(SIZE, ASPECTS[0])(b"no image")


def test_settings_have_preparers_of_their_own() -> None:
    squash, keep = (shared_preparer(SIZE, aspect)(FILES[4]) for aspect in ASPECTS)
    assert tuple(squash.extent) == (SIZE, SIZE)
    assert tuple(keep.extent) != (SIZE, SIZE)
    assert shared_preparer(SIZE, ASPECTS[0]) is shared_preparer(SIZE, ASPECTS[0])
