"""Where the cells of records' grids look in their pictures."""

import math

import numpy as np
import tensorflow as tf

from model.encoder import cell_centres
from model.preprocessing import target_size
from model.records import Manifest


def places(size: tuple[int, int], manifest: Manifest) -> np.ndarray:
    """Where the rows and the columns of a grid look.

    Args:
      size: height and width of the picture, or any that have their ratio.
      manifest: of the records, which says how pictures were brought to the encoder.

    Returns:
      Shares of height and width, float64 [2, G].
    """
    extent = target_size(tf.constant(size), manifest.image_size, manifest.aspect).numpy()
    cells = math.isqrt(manifest.grid_shape[0])
    return np.stack([cell_centres(int(side), cells) for side in extent])
