"""Seeded pictures that every version must caption alike, wherever and with whatever it is asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from serving import contract
from serving.contract import Status

# Of several sizes and both canonical formats.
_SIZES = ((64, 64), (480, 640), (200, 133), (33, 257))
# Two graphs may round a grid's last bit differently; absolute, and relative to log_prob.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Sample:
    """An image and what `serving_default` says of it.

    Attributes:
      image: its file.
      caption: of it.
      log_prob: of the caption.
      status: of contract.Status.
    """

    image: bytes
    caption: str
    log_prob: float
    status: int

    @property
    def said(self) -> str:
        """Caption, log_prob and status, for a message."""
        return f"captioned {self.caption!r} (log_prob {self.log_prob:g}, status {self.status})"

    def says_the_same_as(self, other: "Sample") -> bool:
        """True up to the last bits of log_prob."""
        return (self.caption, self.status) == (other.caption, other.status) and bool(
            np.isclose(self.log_prob, other.log_prob, TOLERANCE, TOLERANCE)
        )


NO_IMAGE = Sample(b"", "", -math.inf, Status.NOT_AN_IMAGE)


def sample_image() -> bytes:
    """A small JPEG that every model can caption: a grey-to-white ramp of 64 × 64 pixels."""
    ramp = tf.cast(tf.linspace(128.0, 255.0, 64), tf.uint8)
    pixels = tf.tile(ramp[tf.newaxis, :, tf.newaxis], [64, 1, 3])
    return bytes(tf.io.encode_jpeg(pixels).numpy())


def sample_images() -> list[bytes]:
    """The ramp, then pictures in JPEG and PNG by turns: smooth colours with some noise."""
    generator = np.random.default_rng(0)
    pictures = [sample_image()]
    for index, (height, width) in enumerate(_SIZES):
        coarse = generator.uniform(0, 255, (1, 4, 4, 3)).astype(np.float32)
        smooth = tf.image.resize(coarse, [height, width])[0]
        noisy = smooth + generator.normal(0, 10, (height, width, 3))
        pixels = tf.cast(tf.clip_by_value(noisy, 0, 255), tf.uint8)
        encode = tf.io.encode_png if index % 2 else tf.io.encode_jpeg
        pictures.append(bytes(encode(pixels).numpy()))
    return pictures


def samples_of(images: Sequence[bytes], answer: Mapping[str, tf.Tensor]) -> list[Sample]:
    """Pair images with the rows of `serving_default`'s answer."""
    names = (contract.CAPTION, contract.LOG_PROB, contract.STATUS)
    captions, log_probs, statuses = (answer[name].numpy().tolist() for name in names)
    rows = zip(images, captions, log_probs, statuses, strict=True)
    return [Sample(image, text.decode(), *numbers) for image, text, *numbers in rows]
