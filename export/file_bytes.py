"""Bytes of a file and the numbers that they write, as tensors."""

import tensorflow as tf

# Of a loop over a file's segments or chunks; those of cameras and editors have a few dozen.
MAX_STEPS = 1000


def first_bytes(data: tf.Tensor, count: int) -> tf.Tensor:
    """Of a scalar string, at most so many: int64 [size]."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, count), tf.uint8), tf.int64)


def number(digits: tf.Tensor, size: int, is_little: tf.Tensor | bool) -> tf.Tensor:
    """Bytes int64 [..., size] → the number that each row writes, int64 [...]."""
    factors = tf.constant([256**place for place in range(size)], tf.int64)
    return tf.reduce_sum(digits * tf.where(is_little, factors, factors[::-1]), axis=-1)
