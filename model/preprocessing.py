"""Canonical bytes → ResNet50's input, in TensorFlow alone.

The one definition that the preprocessing pipeline runs eagerly, and that the exported
graph traces; records made with another FINGERPRINT are refused by the trainer.
"""

import hashlib
import json

import tensorflow as tf

# Channel means of ImageNet in BGR order, as subtracted when ResNet50's weights were trained
# (He et al. 2015; keras.applications, mode "caffe").
BGR_MEANS = (103.939, 116.779, 123.68)
CHANNELS = 3

# Every choice that changes a pixel. Change the code below and this table together.
CHOICES = {
    "version": 1,
    "decode": "tf.io.decode_image, first frame",
    "resize": "bilinear with antialias, aspect ratio squashed",
    "colour": "BGR minus ImageNet means",
    "means": BGR_MEANS,
    "grid_dtype": "float16",
}


def fingerprint(image_size: int, grid_size: int) -> str:
    """SHA-256 (hex) of every choice between image bytes and stored grid."""
    choices = {**CHOICES, "image_size": image_size, "grid_size": grid_size}
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def prepare(image_bytes: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decode and normalise one image as ResNet50 expects it.

    Args:
      image_bytes: scalar string, canonical bytes (model/image_bytes).
      image_size: S, the side in pixels of the square that the photograph is squashed to.

    Returns:
      float32 [S, S, 3], BGR, channel means removed, about −124 to 151.

    Raises:
      tf.errors.InvalidArgumentError: bytes that TensorFlow cannot decode.
    """
    image = tf.io.decode_image(image_bytes, channels=CHANNELS, expand_animations=False)
    image.set_shape([None, None, CHANNELS])
    # Antialias: without it, a photograph shrunk threefold keeps one pixel of nine.
    image = tf.image.resize(image, [image_size, image_size], antialias=True)
    return tf.reverse(image, axis=[-1]) - tf.constant(BGR_MEANS)
