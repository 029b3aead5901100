"""Decoder state → logits of the next word."""

import keras
import tensorflow as tf


class TiedOutput(keras.layers.Layer):
    """An output layer whose weights are the words' embeddings (Press and Wolf 2017).

    Args:
      vocabulary_size: V.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(name="tied_output")
        self._vocabulary_size = vocabulary_size
        self._projection: keras.layers.Dense | None = None

    def build_for(self, hidden_size: int, embedding_size: int) -> None:
        """Make the weights: a bias, and a projection where the sizes differ."""
        self._bias = self.add_weight(
            shape=(self._vocabulary_size,), initializer="zeros", name="bias"
        )
        if hidden_size != embedding_size:
            self._projection = keras.layers.Dense(embedding_size, use_bias=False, name="projection")
            self._projection.build((None, hidden_size))
        self.built = True

    def call(self, state: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
        """State [..., H] and embeddings [V, E] → logits [..., V]."""
        projected = state if self._projection is None else self._projection(state)
        rows = tf.reshape(projected, [-1, embeddings.shape[-1]])
        logits = tf.matmul(rows, embeddings, transpose_b=True) + self._bias
        shape = tf.concat([tf.shape(state)[:-1], [self._vocabulary_size]], axis=0)
        return tf.ensure_shape(
            tf.reshape(logits, shape), [*state.shape[:-1], self._vocabulary_size]
        )
