"""ResNet50 without its top (He et al. 2015), with the weights that a user names."""

import hashlib
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from model.errors import InvalidInput
from model.preprocessing import CHANNELS

NAME = "resnet50"
FEATURES = 2048
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


def architecture(image_size: int, precision: str, weights: str | None = None) -> keras.Model:
    """The network with ImageNet's weights, or with none that mean anything.

    Args:
      image_size: S.
      precision: a Keras dtype policy; weights are float32 under each.
      weights: IMAGENET or None.
    """
    with _dtype_policy(precision):
        return keras.applications.ResNet50(
            include_top=False,
            weights=weights,
            input_shape=(image_size, image_size, CHANNELS),
            name=NAME,
        )


def build(weights: str, image_size: int, precision: str) -> keras.Model:
    """The network with its weights: float32 [N, S, S, 3] → [N, S/32, S/32, F], rounded up.

    Args:
      weights: "imagenet", "random:SEED" or a Keras weights file of ResNet50 without top.
      image_size: S.
      precision: a Keras dtype policy; weights are float32 under each.

    Raises:
      InvalidInput: no such weights, or not those of ResNet50.
    """
    if weights.startswith(RANDOM_PREFIX):
        seed = weights.removeprefix(RANDOM_PREFIX)
        if not seed.isdecimal():
            raise InvalidInput(f"encoder weights {weights!r}, expected random:SEED")
        model = architecture(image_size, precision)
        _randomise(model, int(seed))
        return model
    if weights == IMAGENET:
        try:
            with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
                return architecture(image_size, precision, IMAGENET)
        # Keras wraps whatever its download meets in a bare Exception.
        except Exception as error:
            raise InvalidInput(
                f"ImageNet weights could not be downloaded ({error}); pass a weights file or "
                "random:SEED as --encoder_weights"
            ) from error
    if not Path(weights).is_file():
        raise InvalidInput(
            f"encoder weights {weights!r}: no such file, expected imagenet, random:SEED "
            "or a Keras weights file of ResNet50 without top"
        )
    model = architecture(image_size, precision)
    try:
        with warnings.catch_warnings():
            # Keras leaves what it does not find in the file at random values, with a warning.
            warnings.filterwarnings("error", message="Skipping nested container")
            model.load_weights(weights)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        raise InvalidInput(
            f"{weights}: not the weights of ResNet50 without top ({error})"
        ) from error
    return model


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """The policy that layers made inside the block take."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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


def digest(network: keras.Model) -> str:
    """SHA-256 (hex) of its weights."""
    sha256 = hashlib.sha256()
    for weight in network.weights:
        sha256.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return sha256.hexdigest()
