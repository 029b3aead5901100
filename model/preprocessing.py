"""Canonical bytes → ResNet50's input: decoded and resized in TensorFlow alone.

The one definition that the exported graph traces, and that the preprocessing pipeline runs in its
two parts, `resized` and `normalise_into`; records made with another FINGERPRINT are refused by the
trainer.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# Channel means of ImageNet in BGR order, as subtracted when ResNet50's weights were trained
# (He et al. 2015; keras.applications, mode "caffe").
BGR_MEANS = (103.939, 116.779, 123.68)
_RGB_MEANS = np.array(BGR_MEANS[::-1], np.float32)
CHANNELS = 3

SQUASH, KEEP = ASPECTS = ("squash", "keep")
"""squash: both sides become S. keep: the longer side becomes S, the rest is padding."""

# Sizes, as parts of the original, at which a JPEG decoder can stop early.
_JPEG_SCALES = (1, 2, 4, 8)

# Every choice that changes a pixel. Change the code below and this table together.
CHOICES: dict[str, Any] = {
    "version": 3,
    "decode": "tf.io.decode_image, first frame; JPEG at the least DCT scale that covers the target",
    "resize": "area where no side grows, else bilinear with antialias",
    "padding": "ImageNet means, right and below",
    "colour": "BGR minus ImageNet means",
    "means": list(BGR_MEANS),
    "pooling": "adaptive average over the cells that the picture covers",
    "grid_dtype": "float16",
}


class Prepared(NamedTuple):
    """An image as ResNet50 takes it.

    Attributes:
      image: float32 [S, S, 3], BGR, channel means removed, about −124 to 151.
      extent: int32 [2], height and width in pixels of the picture in its top left; the rest is
        padding with the means, that is 0.
    """

    image: tf.Tensor
    extent: tf.Tensor


def choices(image_size: int, grid_size: int, aspect: str) -> dict[str, Any]:
    """Every choice between image bytes and stored grid, as JSON holds it.

    Args:
      image_size: S, the side in pixels of the encoder's input.
      grid_size: cells a side of the stored grid.
      aspect: one of ASPECTS.
    """
    return {**CHOICES, "image_size": image_size, "grid_size": grid_size, "aspect": aspect}


def fingerprint(made_with: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of `choices`."""
    return hashlib.sha256(json.dumps(dict(made_with), sort_keys=True).encode()).hexdigest()


def prepare(image_bytes: tf.Tensor, image_size: int, aspect: str = SQUASH) -> Prepared:
    """Decode and normalise one image as ResNet50 expects it.

    Args:
      image_bytes: scalar string, canonical bytes (model/image_bytes).
      image_size: S, the side in pixels of the square that the encoder takes.
      aspect: one of ASPECTS.

    Raises:
      tf.errors.InvalidArgumentError: bytes that TensorFlow cannot decode.
    """
    return _normalised(resized(image_bytes, image_size, aspect), image_size, aspect)


def fit(pixels: tf.Tensor, image_size: int, aspect: str = SQUASH) -> Prepared:
    """`prepare` for a picture that is decoded already.

    Args:
      pixels: upright RGB, uint8 [H, W, 3].
      image_size: S.
      aspect: one of ASPECTS.
    """
    extent = target_size(tf.shape(pixels)[:2], image_size, aspect)
    return _normalised(_resize(pixels, extent), image_size, aspect)


def resized(image_bytes: tf.Tensor, image_size: int, aspect: str = SQUASH) -> tf.Tensor:
    """The first part of `prepare`: decode one image, bring it to its size in the encoder's input.

    Args:
      image_bytes: scalar string, canonical bytes (model/image_bytes).
      image_size: S.
      aspect: one of ASPECTS.

    Returns:
      RGB, float32 [H, W, 3], 0 to 255; H and W are S or, where the aspect ratio is kept, at most S.

    Raises:
      tf.errors.InvalidArgumentError: bytes that TensorFlow cannot decode.
    """
    image, extent = tf.cond(
        tf.io.is_jpeg(image_bytes),
        lambda: _decode_jpeg(image_bytes, image_size, aspect),
        lambda: _decode_other(image_bytes, image_size, aspect),
    )
    return _resize(image, extent)


def _normalised(picture: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    """The second part: RGB, float32 [H, W, 3] → the encoder's input."""
    extent = tf.shape(picture)[:2]
    image = _bgr_without_means(picture)
    if aspect == KEEP:
        below, right = tf.unstack(image_size - extent)
        image = tf.pad(image, [[0, below], [0, right], [0, 0]])
    return Prepared(tf.ensure_shape(image, [image_size, image_size, CHANNELS]), extent)


def normalise_into(picture: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """The second part in NumPy, to the bit; TensorFlow takes five times as long for it.

    Args:
      picture: RGB, float32 [H, W, 3], as `resized` gives it, perhaps mirrored.
      image: float32 [S, S, 3], to be filled with BGR without the means and, right of and below the
        picture, zeros.

    Returns:
      H and W, the picture's extent.
    """
    height, width, _ = picture.shape
    image[height:] = 0
    image[:height, width:] = 0
    for channel, mean in enumerate(_RGB_MEANS):
        place = image[:height, :width, CHANNELS - 1 - channel]
        np.subtract(picture[..., channel], mean, out=place)
    return height, width


def prepare_batch(image_bytes: tf.Tensor, image_size: int, aspect: str = SQUASH) -> Prepared:
    """`prepare` for a batch, in a graph: string [N] → image [N, S, S, 3] and extent [N, 2]."""
    return tf.map_fn(
        lambda each: prepare(each, image_size, aspect),
        image_bytes,
        fn_output_signature=Prepared(
            tf.TensorSpec([image_size, image_size, CHANNELS], tf.float32),
            tf.TensorSpec([2], tf.int32),
        ),
    )


def _resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3] → float32 [*size, 3].

    Averaging the area that a pixel covers lets every pixel of a large photograph count once, in
    half the time of the triangles of an antialiased bilinear resize; enlarging, it would give
    squares.
    """
    return tf.cond(
        tf.reduce_all(size <= tf.shape(image)[:2]),
        lambda: tf.image.resize(image, size, method="area"),
        lambda: tf.image.resize(image, size, antialias=True),
    )


def _bgr_without_means(image: tf.Tensor) -> tf.Tensor:
    """RGB → BGR minus the means, both float32 [H, W, 3]."""
    rows = tf.reshape(tf.reverse(image, axis=[-1]), [tf.shape(image)[0], -1])
    # By rows: subtracting three numbers from each pixel takes TensorFlow twice as long.
    rows -= tf.tile(tf.constant(BGR_MEANS), [tf.shape(image)[1]])
    return tf.reshape(rows, tf.shape(image))


def target_size(size: tf.Tensor, image_size: int, aspect: str) -> tf.Tensor:
    """Height and width int32 [2] that a picture of this size is brought to; the rest is padding.

    Args:
      size: height and width, int32 [2].
      image_size: S, the side in pixels of the encoder's input.
      aspect: one of ASPECTS.
    """
    if aspect == SQUASH:
        return tf.constant([image_size, image_size])
    longer = tf.cast(tf.reduce_max(size), tf.float64)
    fitted = tf.round(tf.cast(size, tf.float64) * image_size / longer)
    return tf.maximum(tf.cast(fitted, tf.int32), 1)


def _decode_other(
    image_bytes: tf.Tensor, image_size: int, aspect: str
) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.io.decode_image(image_bytes, channels=CHANNELS, expand_animations=False)
    image.set_shape([None, None, CHANNELS])
    return image, target_size(tf.shape(image)[:2], image_size, aspect)


def _decode_jpeg(
    image_bytes: tf.Tensor, image_size: int, aspect: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode no more pixels than the resize needs.

    The inverse DCT gives a half, a quarter or an eighth of the size directly, without the
    coefficients that are finer than its pixels: a low-pass filter for less than nothing.
    """
    size = tf.io.extract_jpeg_shape(image_bytes)[:2]
    target = target_size(size, image_size, aspect)
    shrink = tf.reduce_min(size // target)
    step = sum(tf.cast(shrink >= scale, tf.int32) for scale in _JPEG_SCALES[1:])
    decoders = [
        partial(tf.io.decode_jpeg, image_bytes, channels=CHANNELS, ratio=scale)
        for scale in _JPEG_SCALES
    ]
    return tf.switch_case(step, decoders), target
