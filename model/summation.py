"""Sums whose order no race decides, so that a step gives the same floats whenever a CPU runs it.

TensorFlow's AddN begins with the first of its inputs whose memory nobody else holds at that
moment. Two terms are the same either way; three or more are one float or its neighbour, from one
run of the same graph to the next. So no gradient here is a sum of more than two terms at once.
"""

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
    # Each tensor of this chain is used twice.
    uses = []
    for _ in range(ways - 1):
        use, value = tf.identity(value), tf.identity(value)
        uses.append(use)
    return [*uses, value]


def keep_order() -> None:
    """Tell TensorFlow's graph optimiser, for this process, to make no AddN of sums of two."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
