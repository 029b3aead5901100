"""The exponential moving average of a model's weights (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf


class WeightAverages(tf.Module):
    """Averages of weights; part of the run's checkpoints.

    Make it in the scope of the strategy, so that each replica has a copy.

    Args:
      weights: float32, as the optimiser changes them.
      decay: share of the average that a step leaves; 0 keeps no averages.
    """

    def __init__(self, weights: Sequence[keras.Variable], decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._weights = [weight.value for weight in weights] if decay else []
        self._averages = [
            tf.Variable(weight, trainable=False, name="average") for weight in self._weights
        ]

    def restart(self) -> None:
        """Forget what was averaged: the averages are the weights as they are now."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(weight)

    def update(self, step: tf.Tensor) -> None:
        """Take in the weights after a step; called outside of the replicas.

        Args:
          step: steps taken before it, int32 []. The average of few steps forgets faster, or the
            initial weights would stay in it (as in tf.train.ExponentialMovingAverage).
        """
        taken = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + taken) / (10.0 + taken))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(decay * average + (1.0 - decay) * weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages for its weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = tf.identity(weight)
            weight.assign(average)
            average.assign(kept)
