"""Batches of pictures as the encoder gets them."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from model.errors import ItemFailure, Reason
from model.preprocessing import KEEP, prepare
from pipelines.encoding import Encoding, View
from pipelines.preparing import shared_preparer

SIZE = 32


def encoded(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class NotingEncoder:
    """Keeps copies of what it is given; a grid is its image's first pixel."""

    digest, grid_shape = "noting", (1, 3)
    batch_size, concurrency = 4, 1

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> tf.Tensor:
        self.calls.append((images.copy(), extents.copy()))
        return tf.constant(images[:, :1, 0])


def test_the_encoder_gets_what_prepare_gives() -> None:
    """Bit for bit, with extents, from one array that is filled again and again."""
    lying, upright, square = encoded(20, 60), encoded(60, 20), encoded(40, 40)
    failure = ItemFailure(Reason.DECODE, "no image")
    encoder = NotingEncoder()
    encoding = Encoding(encoder, SIZE)
    preparer = shared_preparer(SIZE, KEEP)
    for files in ([square, lying, None, upright], [upright, lying], [None]):
        views = [View({}, preparer(data) if data else failure, flipped=False) for data in files]
        before = len(encoder.calls)
        grids = encoding(views)
        expected = [prepare(tf.constant(data), SIZE, KEEP) for data in files if data]
        assert len(encoder.calls) == before + bool(expected)
        assert [grid is failure for grid in grids] == [data is None for data in files]
        if not expected:
            continue
        images, extents = encoder.calls[-1]
        np.testing.assert_array_equal(images, [each.image.numpy() for each in expected])
        np.testing.assert_array_equal(extents, [each.extent.numpy() for each in expected])
        assert (images.dtype, extents.dtype) == (np.float32, np.int32)
        found = [grid for grid in grids if isinstance(grid, np.ndarray)]
        np.testing.assert_array_equal(found, images[:, :1, 0].astype(np.float16))
