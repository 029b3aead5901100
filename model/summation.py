"""Sums whose order no race decides, so that a step gives the same floats whenever it runs.

TensorFlow's AddN begins with the first of its inputs whose memory nobody else holds at that
moment. Two terms are the same either way; three or more are one float or its neighbour, from one
run of the same graph to the next. So no gradient here is a sum of more than two terms at once.
"""

from functools import reduce

import tensorflow as tf


def fork(value: tf.Tensor, ways: int) -> list[tf.Tensor]:
    """A value for each of its uses, whose gradients are then added one after the other.

    Needed where a value is used three times or more, other forks of it and what a scan does with
    its states (it writes them and carries them on) counted.

    Args:
      value: of any shape, floating.
      ways: how many uses.

    Returns:
      The value, `ways` times.
    """

    @tf.custom_gradient
    def forked(value: tf.Tensor) -> tuple[list[tf.Tensor], object]:
        def gradient(*gradients: tf.Tensor) -> tf.Tensor:
            return reduce(tf.add, gradients)

        return [tf.identity(value) for _ in range(ways)], gradient

    return list(forked(value))


def keep_order() -> None:
    """Tell TensorFlow's graph optimiser, for this process, to make no AddN of sums of two."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
