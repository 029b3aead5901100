"""The frozen encoder: ResNet50's last feature map as a grid.

ResNet50 (He et al. 2015) without its top gives an image of side S a map of S/32 × S/32
cells with 2,048 features each; a smaller grid is its adaptive average pooling. Where the
aspect ratio is kept, the pooling covers the picture and leaves out the padding: P cells
always lie over the whole photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model import resnet50, runtimes
from model.errors import InvalidInput
from model.preprocessing import ASPECTS, SQUASH, choices
from model.resnet50 import FEATURES, IMAGENET
from model.runtimes import FLOAT32, OPENVINO, PRECISIONS, TENSORFLOW

STRIDE = 32


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder, what it sees, and what computes it.

    Attributes:
      weights: "imagenet", "random:SEED" or a Keras weights file of ResNet50 without top.
      image_size: S, side of its input in pixels.
      grid_size: cells a side of the grid, at most S / 32, rounded up.
      aspect: how a photograph is brought into the square: model.preprocessing.ASPECTS.
      runtime: what computes it: "tensorflow" or "openvino".
      precision: "float32", or "mixed_float16" for GPUs, TensorFlow alone.
    """

    weights: str = IMAGENET
    image_size: int = 224
    grid_size: int = 7
    aspect: str = SQUASH
    runtime: str = TENSORFLOW
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        if self.image_size < STRIDE:
            raise InvalidInput(f"image_size {self.image_size}, expected at least {STRIDE} pixels")
        if not 1 <= self.grid_size <= self.native_size:
            raise InvalidInput(
                f"grid_size {self.grid_size}, expected 1 to {self.native_size} for image_size "
                f"{self.image_size}; raise --image_size to {self.grid_size * STRIDE}"
            )
        for name, value, valid in (
            ("aspect", self.aspect, ASPECTS),
            ("encoder_runtime", self.runtime, (TENSORFLOW, OPENVINO)),
            ("encoder_precision", self.precision, PRECISIONS),
        ):
            if value not in valid:
                raise InvalidInput(f"{name} {value!r}, expected one of {', '.join(valid)}")
        if self.runtime == OPENVINO and self.precision != FLOAT32:
            raise InvalidInput(
                f"encoder_precision {self.precision} with encoder_runtime {OPENVINO}, expected "
                f"{FLOAT32}; take --encoder_runtime {TENSORFLOW}"
            )

    @property
    def native_size(self) -> int:
        """Cells a side of the network's own feature map; its strides round up."""
        return -(-self.image_size // STRIDE)

    @property
    def choices(self) -> dict[str, Any]:
        """Every choice between image bytes and stored grid."""
        return choices(self.image_size, self.grid_size, self.aspect)


class Encoder:
    """images → grid; frozen, in inference mode always.

    Args:
      settings: what it is.
      network: with weights of its own, instead of those that the settings name.

    Attributes:
      settings: what it was made from.
      network: the Keras model.
      digest: SHA-256 (hex) of its weights.
      grid_shape: (P, F).
    """

    def __init__(self, settings: EncoderSettings, network: keras.Model | None = None) -> None:
        runtimes.check_installed(settings.runtime)
        self.settings = settings
        self.network = network or resnet50.build(
            settings.weights, settings.image_size, settings.precision
        )
        # Batch normalisation must keep its stored statistics: frozen means frozen.
        self.network.trainable = False
        self.digest = resnet50.digest(self.network)
        self.grid_shape = (settings.grid_size**2, FEATURES)

    @cached_property
    def _runtime(self) -> runtimes.Runtime:
        """Made when first needed: the launcher of a cluster job asks for the digest alone."""
        return runtimes.load(self.settings.runtime, self.network)

    @property
    def batch_size(self) -> int:
        """Images that a call does best with."""
        return self._runtime.batch_size

    @property
    def concurrency(self) -> int:
        """Calls that do best at once, each from a thread of its own."""
        return self._runtime.concurrency

    @property
    def variables(self) -> Sequence[tf.Variable]:
        """What a graph that calls it reads; who saves such a graph saves them."""
        return self._runtime.variables

    def __call__(
        self, images: np.ndarray | tf.Tensor, extents: np.ndarray | tf.Tensor | None = None
    ) -> tf.Tensor:
        """Encode a batch.

        Args:
          images: float32 [N, S, S, 3] as model/preprocessing prepares them.
          extents: int32 [N, 2], the picture's size in each; None where pictures fill it.

        Returns:
          float32 [N, P, F], cells row-major. With TensorFlow as its runtime, a graph may call it.
        """
        return self.pool(self._runtime(images), extents)

    def pool(
        self, feature_map: np.ndarray | tf.Tensor, extents: np.ndarray | tf.Tensor | None
    ) -> tf.Tensor:
        """Average the cells that the picture covers to the grid's.

        Args:
          feature_map: the network's, float32 [N, S/32, S/32, F].
          extents: int32 [N, 2], the picture's size in each; None where pictures fill it.

        Returns:
          float32 [N, P, F].
        """
        settings = self.settings
        feature_map = tf.convert_to_tensor(feature_map)
        if settings.aspect != SQUASH and extents is not None:
            # Row n averages n cells, so that the picture's size picks its matrix.
            table = tf.constant(_pooling_table(settings.native_size, settings.grid_size))
            covered = -(-tf.convert_to_tensor(extents) // STRIDE)
            vertical, horizontal = (tf.gather(table, covered[:, axis]) for axis in (0, 1))
            rows = tf.einsum("ngy,nyxf->ngxf", vertical, feature_map)
            feature_map = tf.einsum("nhx,ngxf->nghf", horizontal, rows)
        elif settings.grid_size != settings.native_size:
            matrix = tf.constant(_pooling_matrix(settings.native_size, settings.grid_size))
            rows = tf.einsum("gy,nyxf->ngxf", matrix, feature_map)
            feature_map = tf.einsum("hx,ngxf->nghf", matrix, rows)
        return tf.reshape(feature_map, [-1, *self.grid_shape])

    def cell_centres(self, extents: np.ndarray | tf.Tensor) -> tf.Tensor:
        """Where the cells of pictures look, as `cell_centres`, in a graph.

        Args:
          extents: int32 [N, 2], height and width of each picture in the encoder's input.

        Returns:
          float32 [N, 2, G]: shares of the height for the grid's rows, of the width for its columns.
        """
        extents = tf.convert_to_tensor(extents)
        native, cells = self.settings.native_size, self.settings.grid_size
        table = np.stack([_middles(covered, cells) for covered in range(1, native + 1)])
        middles = tf.gather(tf.constant(table, tf.float32), -(-extents // STRIDE) - 1)
        return middles / tf.cast(extents[..., tf.newaxis], tf.float32)


def cell_centres(extent: int, cells: int) -> np.ndarray:
    """Where a grid's cells look, along one side of the picture.

    Each strided layer of the network keeps the first of the places it strides over, so that cell
    i of its map sees the pixels around pixel STRIDE · i: the map lies half a cell to the left of
    and above the equal parts of the picture. A pooled cell looks at the mean of what it averages.

    Args:
      extent: pixels of the picture along this side, in the encoder's input.
      cells: of the grid along this side, G.

    Returns:
      Shares of the side, float64 [G].
    """
    return _middles(-(-extent // STRIDE), cells) / extent


def _middles(native: int, cells: int) -> np.ndarray:
    """Pixels at which cells look that average so many native cells: float64 [G]."""
    return _pooling_matrix(native, cells).astype(np.float64) @ (STRIDE * np.arange(native) + 0.5)


def _pooling_matrix(native: int, cells: int) -> np.ndarray:
    """Row g averages the native cells that output cell g covers (adaptive average pooling)."""
    matrix = np.zeros((cells, native), np.float32)
    for cell in range(cells):
        first, last = cell * native // cells, -(-(cell + 1) * native // cells)
        matrix[cell, first:last] = 1 / (last - first)
    return matrix


def _pooling_table(native: int, cells: int) -> np.ndarray:
    """Row n is the pooling matrix over the first n of the native cells: [native + 1, G, native]."""
    table = np.zeros((native + 1, cells, native), np.float32)
    for covered in range(1, native + 1):
        table[covered, :, :covered] = _pooling_matrix(covered, cells)
    return table
