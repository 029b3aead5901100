"""Dense layers whose callers choose the precision they compute in."""

import keras
import tensorflow as tf


def project(
    values: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None, *, transposed: bool = False
) -> tf.Tensor:
    """Multiply by a matrix in the dtype of the values, whatever the matrix's.

    One matmul of rows: tf.tensordot, where it does not know a size, reads its axes from tensors,
    which XLA does not take in a loop.

    Args:
      values: [..., in].
      kernel: [in, out], or [out, in] if transposed.
      bias: [out], or None.
      transposed: whether the kernel is.

    Returns:
      [..., out], of the values' dtype.
    """
    rows = tf.reshape(values, [-1, values.shape[-1]])
    product = tf.matmul(rows, tf.cast(kernel, values.dtype), transpose_b=transposed)
    if bias is not None:
        product += tf.cast(bias, values.dtype)
    size = product.shape[-1]
    shaped = tf.reshape(product, tf.concat([tf.shape(values)[:-1], [size]], axis=0))
    return tf.ensure_shape(shaped, [*values.shape[:-1], size])


class Projection(keras.layers.Dense):
    """A dense layer that computes in the dtype of its input; its weights stay float32.

    A Keras dtype policy would fix the precision for good, and the same weights are trained in
    one precision and decoded in another.

    Args:
      units: size of the output.
      **settings: as keras.layers.Dense has them.
    """

    def __init__(self, units: int, **settings: object) -> None:
        super().__init__(units, autocast=False, **settings)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[..., in] → [..., units], of the same dtype."""
        return project(inputs, self.kernel, self.bias)
