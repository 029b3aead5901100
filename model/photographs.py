"""Photographs as pixels, for pictures that people look at."""

import io

import numpy as np
from PIL import Image

from model.image_bytes import canonicalise


def photograph(data: bytes, most: int, *, mirrored: bool = False) -> np.ndarray:
    """Decode an image file, upright and no larger than asked for.

    Args:
      data: a file that model/image_bytes takes.
      most: pixels of the longer side; a smaller photograph stays as it is.
      mirrored: turn it left to right, for the record of a mirror image.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ItemFailure: bytes that are no image.
    """
    with Image.open(io.BytesIO(canonicalise(data).data)) as image:
        rgb = image.convert("RGB")
    rgb.thumbnail((most, most))
    pixels = np.asarray(rgb)
    return pixels[:, ::-1] if mirrored else pixels
