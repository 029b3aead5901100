"""The frozen encoder: ResNet50's last feature map as a grid.

ResNet50 (He et al. 2015) without its top gives an image of side S a map of S/32 × S/32
cells with 2,048 features each; a smaller grid is its adaptive average pooling.
"""

import hashlib
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from model.errors import InvalidInput
from model.preprocessing import CHANNELS

NAME = "resnet50"
FEATURES = 2048
STRIDE = 32
IMAGENET = "imagenet"
RANDOM_PREFIX = "random:"

_DOWNLOAD_TIMEOUT_S = 30.0

# Untrained batch normalisation passes everything through, so that random activations grow with
# every residual block (to 2.9e5, beyond float16) and all images look alike. The stem brings
# pixels (deviation about 65) to 1 and the branches stay small beside their shortcuts: grids of
# coco80 then lie in 0 to 17 (mean 1.0), a channel's mean differs between images by 0.32 of
# itself and between cells by 0.82 (0.21 and 0.83 with both scales at 1), the cosine between two
# photographs' grids is 0.78 (0.96), and ridge regression on 280 drawn scenes tells colours with
# 0.78 (0.57), sizes with 0.99 and places with 0.95 accuracy.
_STEM, _RANDOM_STEM_SCALE = "conv1_bn", 0.02
_BRANCH_END, _RANDOM_BRANCH_SCALE = "_3_bn", 0.1


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder.

    Attributes:
      weights: "imagenet", "random:SEED" or a Keras weights file of ResNet50 without top.
      image_size: side of its input in pixels, a multiple of 32.
      grid_size: cells a side, at most image_size / 32.
    """

    weights: str = IMAGENET
    image_size: int = 224
    grid_size: int = 7

    def __post_init__(self) -> None:
        if self.image_size < STRIDE or self.image_size % STRIDE:
            raise InvalidInput(
                f"image_size {self.image_size}, expected a multiple of {STRIDE} pixels"
            )
        native = self.image_size // STRIDE
        if not 1 <= self.grid_size <= native:
            raise InvalidInput(
                f"grid_size {self.grid_size}, expected 1 to {native} for image_size "
                f"{self.image_size}; raise --image_size to {self.grid_size * STRIDE}"
            )


class Encoder:
    """images → grid; frozen, in inference mode always.

    Attributes:
      settings: what it was made from.
      digest: SHA-256 (hex) of its weights.
      grid_shape: (P, F).
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.network = _build(settings)
        # Batch normalisation must keep its stored statistics: frozen means frozen.
        self.network.trainable = False
        self.digest = _digest(self.network)
        self.grid_shape = (settings.grid_size**2, FEATURES)

    def __call__(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """Encode a batch through the compiled graph; arguments as `encode`."""
        return self._forward(tf.convert_to_tensor(images, tf.float32))[0]

    @cached_property
    def _forward(self) -> Callable[[tf.Tensor], list[tf.Tensor]]:
        """`encode` with its weights as constants, made when it is first called.

        TensorFlow folds batch normalisation into constant kernels: 0.84 of the CPU time of the
        graph with variables, grids equal to 1e-6 of their mean.
        """
        size = self.settings.image_size
        signature = tf.TensorSpec([None, size, size, CHANNELS], tf.float32)
        graph = tf.function(self.encode, input_signature=[signature])
        # Outside whatever graph asks for it first: an export's, for one.
        with tf.init_scope():
            return convert_variables_to_constants_v2(graph.get_concrete_function())

    def encode(self, images: tf.Tensor) -> tf.Tensor:
        """Encode a batch.

        Args:
          images: float32 [N, S, S, 3] as model/preprocessing prepares them.

        Returns:
          float32 [N, P, F], cells row-major.
        """
        feature_map = self.network(images, training=False)
        native = self.settings.image_size // STRIDE
        if self.settings.grid_size != native:
            pool = tf.constant(_pooling_matrix(native, self.settings.grid_size))
            feature_map = tf.einsum("gy,hx,nyxf->nghf", pool, pool, feature_map)
        return tf.reshape(feature_map, [-1, *self.grid_shape])


def _build(settings: EncoderSettings) -> keras.Model:
    shape = (settings.image_size, settings.image_size, CHANNELS)

    def network(weights: str | None) -> keras.Model:
        return keras.applications.ResNet50(
            include_top=False, weights=weights, input_shape=shape, name=NAME
        )

    if settings.weights.startswith(RANDOM_PREFIX):
        seed = settings.weights.removeprefix(RANDOM_PREFIX)
        if not seed.isdecimal():
            raise InvalidInput(f"encoder weights {settings.weights!r}, expected random:SEED")
        model = network(None)
        _randomise(model, int(seed))
        return model
    if settings.weights == IMAGENET:
        try:
            with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
                return network(IMAGENET)
        # Keras wraps whatever its download meets in a bare Exception.
        except Exception as error:
            raise InvalidInput(
                f"ImageNet weights could not be downloaded ({error}); pass a weights file or "
                "random:SEED as --encoder_weights"
            ) from error
    if not Path(settings.weights).is_file():
        raise InvalidInput(
            f"encoder weights {settings.weights!r}: no such file, expected imagenet, random:SEED "
            "or a Keras weights file of ResNet50 without top"
        )
    model = network(None)
    try:
        with warnings.catch_warnings():
            # Keras leaves what it does not find in the file at random values, with a warning.
            warnings.filterwarnings("error", message="Skipping nested container")
            model.load_weights(settings.weights)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        raise InvalidInput(
            f"{settings.weights}: not the weights of ResNet50 without top ({error})"
        ) from error
    return model


@contextmanager
def _socket_timeout(timeout_s: float) -> Iterator[None]:
    """Bound each wait of a download that takes no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _randomise(network: keras.Model, seed: int) -> None:
    """Give every kernel He-normal values from one NumPy stream, the same on any machine."""
    generator = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            deviation = (2 / int(np.prod(kernel.shape[:3]))) ** 0.5
            kernel = generator.standard_normal(kernel.shape, dtype=np.float32) * deviation
            layer.set_weights([kernel, np.zeros_like(bias)])
        elif layer.name == _STEM:
            _set_scale(layer, _RANDOM_STEM_SCALE)
        elif layer.name.endswith(_BRANCH_END):
            _set_scale(layer, _RANDOM_BRANCH_SCALE)


def _set_scale(layer: keras.layers.BatchNormalization, scale: float) -> None:
    gamma, *others = layer.get_weights()
    layer.set_weights([np.full_like(gamma, scale), *others])


def _digest(network: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in network.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def _pooling_matrix(native: int, cells: int) -> np.ndarray:
    """Row g averages the native cells that output cell g covers (adaptive average pooling)."""
    matrix = np.zeros((cells, native), np.float32)
    for cell in range(cells):
        first, last = cell * native // cells, -(-(cell + 1) * native // cells)
        matrix[cell, first:last] = 1 / (last - first)
    return matrix
