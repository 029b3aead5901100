"""Decoder state → logits of the next word."""

import keras
import tensorflow as tf

from model.projection import Projection, project


class TiedOutput(keras.layers.Layer):
    """An output layer whose weights are the words' embeddings (Press and Wolf 2017).

    Args:
      vocabulary_size: V.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__(name="tied_output", autocast=False)
        self._vocabulary_size = vocabulary_size
        self._projection: Projection | None = None

    def build_for(self, hidden_size: int, embedding_size: int) -> None:
        """Make the weights: a bias, and a projection where the sizes differ."""
        self._bias = self.add_weight(
            shape=(self._vocabulary_size,), initializer="zeros", name="bias"
        )
        if hidden_size != embedding_size:
            self._projection = Projection(embedding_size, use_bias=False, name="projection")
            self._projection.build((None, hidden_size))
        self.built = True

    def call(self, state: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
        """State [..., H] and embeddings [V, E] → logits [..., V], of the state's dtype."""
        projected = state if self._projection is None else self._projection(state)
        return project(projected, embeddings, self._bias, transposed=True)
