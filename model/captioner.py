"""The captioner: grid in, distribution over the next word out, as one keras.Model."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from model.config import DecoderConfig
from model.decoder import Decoder, State

# Keeps the scale of a channel that never varies finite.
_VARIANCE_FLOOR = 1e-6
# Cells, embeddings and output draw apart.
_DROPOUT_PLACES = 3


@dataclass(frozen=True)
class Memory:
    """What the decoder sees of the images; a row an image, or a row a caption after `rows`.

    Attributes:
      cells: projected grid, float32 [N, P, H].
      keys: the attention's projection of the cells, float32 [N, P, A].
      mean_gates: the mean cell's share of the attention GRU's input, float32 [N, 3H].
    """

    cells: tf.Tensor
    keys: tf.Tensor
    mean_gates: tf.Tensor

    def rows(self, image_index: tf.Tensor) -> "Memory":
        """Repeat or pick rows: int32 [M] → a Memory of M rows."""
        return Memory(
            tf.gather(self.cells, image_index),
            tf.gather(self.keys, image_index),
            tf.gather(self.mean_gates, image_index),
        )


class Captioner(keras.Model):
    """ResNet50 grid → words.

    Args:
      config: sizes.
      vocabulary_size: V.
      grid_shape: (P, F).
    """

    def __init__(
        self, config: DecoderConfig, vocabulary_size: int, grid_shape: tuple[int, int]
    ) -> None:
        super().__init__(name="captioner")
        self.config = config
        cells, features = grid_shape
        # Statistics of the training grids: channels of a ResNet differ by orders of magnitude.
        self._grid_mean = self.add_weight(
            shape=(features,), initializer="zeros", trainable=False, name="grid_mean"
        )
        self._grid_variance = self.add_weight(
            shape=(features,), initializer="ones", trainable=False, name="grid_variance"
        )
        self._cell_projection = keras.layers.Dense(config.hidden_size, name="cell_projection")
        # Convolutions hardly tell where a cell lies, captions often do.
        self._cell_position = self.add_weight(
            shape=(cells, config.hidden_size), initializer="random_normal", name="cell_position"
        )
        self._embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self._decoder = Decoder(config)
        self._output = keras.layers.Dense(vocabulary_size, name="output")
        self._cell_projection.build((None, cells, features))
        self._embedding.build((None, None))
        self._output.build((None, config.hidden_size))
        self.built = True

    def set_grid_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Normalise grids by these statistics of the training split, float32 [F] each."""
        self._grid_mean.assign(mean)
        self._grid_variance.assign(variance)

    def look(self, grid: tf.Tensor, dropout_seed: tf.Tensor | None = None) -> Memory:
        """Compute once an image what every word of its captions will use.

        Args:
          grid: float16 or float32 [N, P, F].
          dropout_seed: int32 [2] in training, None otherwise.
        """
        scale = tf.math.rsqrt(self._grid_variance + _VARIANCE_FLOOR)
        normalised = (tf.cast(grid, tf.float32) - self._grid_mean) * scale
        cells = tf.nn.relu(self._cell_projection(normalised) + self._cell_position)
        cells = self._drop(cells, dropout_seed, 0)
        return Memory(
            cells=cells,
            keys=self._decoder.attention.keys(cells),
            mean_gates=self._decoder.project_mean(tf.reduce_mean(cells, axis=1)),
        )

    def initial_state(self, rows: tf.Tensor | int) -> State:
        """The decoder's state before the first word."""
        return self._decoder.initial_state(rows)

    def step(
        self, tokens: tf.Tensor, state: State, memory: Memory
    ) -> tuple[tf.Tensor, State, tf.Tensor]:
        """Read one word, predict the next.

        Args:
          tokens: the word read, int32 [M]; `<start>` first.
          state: after the words before.
          memory: of M rows.

        Returns:
          Logits [M, V], the new state, attention weights [M, P].
        """
        projected = self._decoder.project_words(self._embedding(tokens)) + memory.mean_gates
        state, weights = self._decoder(projected, memory.keys, memory.cells, state)
        return self._output(state[-1]), state, weights

    def call(
        self,
        grid: tf.Tensor,
        tokens: tf.Tensor,
        image_index: tf.Tensor,
        dropout_seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Teacher forcing: every word of every caption, predicted from the words before it.

        Args:
          grid: float16 or float32 [N, P, F].
          tokens: words read, `<start>` first, int32 [M, T].
          image_index: row of `grid` for each caption, int32 [M].
          dropout_seed: int32 [2] in training, None otherwise.

        Returns:
          Logits [M, T, V], for the word after each; attention weights [M, T, P].
        """
        memory = self.look(grid, dropout_seed).rows(image_index)
        embedded = self._drop(self._embedding(tokens), dropout_seed, 1)
        projected = self._decoder.project_words(embedded) + memory.mean_gates[:, tf.newaxis]

        def advance(carried: tuple[State, tf.Tensor], word: tf.Tensor) -> tuple[State, tf.Tensor]:
            state, _ = carried
            return self._decoder(word, memory.keys, memory.cells, state)

        start = (self.initial_state(tf.shape(tokens)[0]), tf.zeros_like(memory.cells[..., 0]))
        states, weights = tf.scan(advance, tf.transpose(projected, [1, 0, 2]), start)
        top = self._drop(tf.transpose(states[-1], [1, 0, 2]), dropout_seed, 2)
        return self._output(top), tf.transpose(weights, [1, 0, 2])

    def _drop(self, values: tf.Tensor, seed: tf.Tensor | None, place: int) -> tf.Tensor:
        """Dropout drawn from a seed, so that a resumed run draws what an undisturbed one did."""
        if seed is None or self.config.dropout == 0.0:
            return values
        return tf.nn.experimental.stateless_dropout(
            values, self.config.dropout, seed=seed * [1, _DROPOUT_PLACES] + [0, place]
        )
