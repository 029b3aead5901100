"""Additive attention (Bahdanau et al. 2015)."""

import keras
import tensorflow as tf

from model.projection import Projection
from model.summation import fork


class BahdanauAttention(keras.layers.Layer):
    """Weighs grid cells by `v · tanh(W_q query + W_k cell)`.

    Args:
      units: A, in which query and cells are compared.
    """

    def __init__(self, units: int) -> None:
        super().__init__(name="attention", autocast=False)
        self._query_projection = Projection(units, name="query")
        self._key_projection = Projection(units, use_bias=False, name="key")
        self._score = Projection(1, use_bias=False, name="score")
        self._units = units

    def build_for(self, hidden_size: int) -> None:
        """Make the weights for queries and cells of this size."""
        self._query_projection.build((None, hidden_size))
        self._key_projection.build((None, None, hidden_size))
        self._score.build((None, None, self._units))
        self.built = True

    def keys(self, cells: tf.Tensor) -> tf.Tensor:
        """Project cells once an image: [N, P, H] → [N, P, A]."""
        return self._key_projection(cells)

    def call(
        self, query: tf.Tensor, keys: tf.Tensor, cells: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Attend (Bahdanau et al. 2015, section 3.1 and appendix A.1.2).

        Args:
          query: decoder state, float32 [M, H].
          keys: projected cells, [M, P, A]; their dtype is the one computed in.
          cells: [M, P, H], of the same dtype.

        Returns:
          Context [M, H], of that dtype; weights float32 [M, P], each row summing to 1.
        """
        query = tf.cast(query, keys.dtype)
        scores = self._score(tf.tanh(keys + self._query_projection(query)[:, tf.newaxis, :]))
        weights, seen = fork(tf.nn.softmax(tf.cast(scores[..., 0], tf.float32), axis=-1), 2)
        context = tf.linalg.matvec(cells, tf.cast(weights, cells.dtype), transpose_a=True)
        return context, seen
