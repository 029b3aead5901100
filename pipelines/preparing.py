"""Canonical bytes → a picture of the size that the encoder wants, in the thread that asks."""

from functools import lru_cache

import numpy as np
import tensorflow as tf

from model.preprocessing import resized

# An eager call of a graph hands its operations to TensorFlow's own threads, whose meetings with
# the one that waits cost half as much again as the work; a session can stay where it is.
_HERE = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)


class Preparer:
    """`resized` as one graph, for any number of threads; on the CPU, whatever else is there.

    Args:
      image_size: S, the side in pixels of the square that the encoder takes.
      aspect: how a photograph is brought into it, one of model.preprocessing.ASPECTS.
    """

    def __init__(self, image_size: int, aspect: str) -> None:
        with tf.Graph().as_default() as graph:
            data = tf.compat.v1.placeholder(tf.string, [])
            picture = resized(data, image_size, aspect)
        config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        session = tf.compat.v1.Session(graph=graph, config=config)
        self._run = session.make_callable(picture, [data], accept_options=True)

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode one image and bring it to its size.

        Returns:
          RGB, float32 [H, W, 3], 0 to 255, the caller's own.

        Raises:
          tf.errors.InvalidArgumentError: bytes that TensorFlow cannot decode.
        """
        picture: np.ndarray = self._run(data, options=_HERE)
        return picture


# One for all threads of a process: it holds no image.
shared_preparer = lru_cache(maxsize=2)(Preparer)
