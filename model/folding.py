"""Batch normalisation folded into the convolutions before it.

A convolution with kernel W and bias b, then a normalisation by γ, β, μ and σ², is a convolution
with kernel W·γ/√(σ² + ε) and bias (b - μ)·γ/√(σ² + ε) + β. TensorFlow does not find that by
itself: the bias stands between the two.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

_CONVOLUTION, _NORMALISATION = "_conv", "_bn"


def fold(network: keras.Model) -> keras.Model:
    """ResNet50 as a network that computes what it does in inference, with half of its layers.

    Args:
      network: layers `NAME_conv` and `NAME_bn` follow one another.

    Returns:
      The same map from images to features, up to the last bits of float32.
    """

    def copy(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.layers.Conv2D):
            return layer.__class__.from_config(layer.get_config())
        name = layer.name.removesuffix(_CONVOLUTION) + _NORMALISATION
        return FoldedConvolution(layer, network.get_layer(name))

    return keras.models.clone_model(network, clone_function=copy, call_function=_call)


class FoldedConvolution(keras.layers.Layer):
    """A convolution and the batch normalisation behind it, in one.

    Args:
      convolution: with a bias.
      normalisation: of its output.

    Attributes:
      folded: kernel and bias, not to be trained, in the dtype that it computes in.
    """

    def __init__(
        self,
        convolution: keras.layers.Conv2D,
        normalisation: keras.layers.BatchNormalization,
    ) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        kernel, bias = convolution.get_weights()
        gamma, beta, mean, variance = (
            weight.astype(np.float64) for weight in normalisation.get_weights()
        )
        scale = gamma / np.sqrt(variance + normalisation.epsilon)
        # As constants they would be copied wherever TensorFlow copies a graph: a server held five
        # times as much memory.
        self.folded = [
            tf.Variable(tf.cast(value, self.compute_dtype), trainable=False)
            for value in (kernel * scale, (bias - mean) * scale + beta)
        ]
        self._strides, self._padding = convolution.strides, convolution.padding.upper()

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """[N, H, W, C] → [N, H', W', C'], in the dtype of its input."""
        kernel, bias = self.folded
        return tf.nn.bias_add(tf.nn.conv2d(images, kernel, self._strides, self._padding), bias)


def weights(folded: keras.Model) -> list[tf.Variable]:
    """All variables of what `fold` made, which holds them."""
    layers = [layer for layer in folded.layers if isinstance(layer, FoldedConvolution)]
    return [variable for layer in layers for variable in layer.folded]


def _call(layer: keras.Layer, *inputs: Any, **settings: Any) -> Any:
    """Build the copy: what is folded is passed by."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return inputs[0]
    return layer(*inputs, **settings)
