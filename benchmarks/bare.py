"""The side that both pipelines are measured against: Keras' ResNet50 and nothing else."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.ratio import rate

BATCH = 32


def bare_forward(images: np.ndarray) -> Callable[[], float]:
    """Images a second of a plain ResNet50 `tf.function` over decoded images [N, S, S, 3]."""
    network = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=images.shape[1:]
    )
    forward = tf.function(
        lambda batch: network(batch, training=False),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], tf.float32)],
    )

    def work() -> None:
        for start in range(0, len(images), BATCH):
            forward(images[start : start + BATCH]).numpy()

    # The first call traces the graph.
    forward(images[:BATCH])
    return lambda: rate(work, len(images))
