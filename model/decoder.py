"""The stacked GRUs of the decoder, one word at a time.

Top-down attention (Anderson et al. 2018, with GRUs for LSTMs): the first GRU sees the
word, the mean of the grid and the top GRU's last state; its output is the attention
query; the GRUs above it see the attended context and write the next word.
"""

import keras
import tensorflow as tf

from model.attention import BahdanauAttention
from model.config import DecoderConfig
from model.projection import Projection
from model.summation import fork

State = tuple[tf.Tensor, ...]
"""One float32 [M, H] for each GRU, the attention GRU first."""


class GruUpdate(keras.layers.Layer):
    """One GRU update from an input that is already projected.

    The input projection is not part of the layer, so that a caller computes it for all
    words of a caption in one matmul.

    Args:
      units: H.
      name: of the layer.
    """

    def __init__(self, units: int, name: str) -> None:
        super().__init__(name=name, autocast=False)
        self._recurrent = Projection(3 * units, kernel_initializer="orthogonal", name="recurrent")
        self._recurrent.build((None, units))
        self.built = True

    def call(self, projected: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Advance the state (Cho et al. 2014, with the reset gate after the matmul).

        Args:
          projected: input times its kernel plus bias: update, reset, candidate; [M, 3H]. Its
            dtype is the one that the matmul is computed in.
          state: float32 [M, H].

        Returns:
          New state float32 [M, H].
        """
        recurrent = self._recurrent(tf.cast(state, projected.dtype))
        # A state is rounded once a word, not once an operation.
        update_in, reset_in, candidate_in = tf.split(tf.cast(projected, state.dtype), 3, axis=-1)
        update, reset, candidate = tf.split(tf.cast(recurrent, state.dtype), 3, axis=-1)
        update = tf.sigmoid(update_in + update)
        reset = tf.sigmoid(reset_in + reset)
        candidate = tf.tanh(candidate_in + reset * candidate)
        return update * state + (1.0 - update) * candidate


class LanguageLayer(keras.layers.Layer):
    """A GRU above the attention, with its input projection.

    Args:
      units: H.
      name: of the layer.
    """

    def __init__(self, units: int, name: str) -> None:
        super().__init__(name=name, autocast=False)
        self._gates = Projection(3 * units, name=f"{name}_gates")
        self._gru = GruUpdate(units, f"{name}_gru")

    def build_for(self, input_size: int) -> None:
        """Make the weights for inputs of this size."""
        self._gates.build((None, input_size))
        self.built = True

    def call(self, inputs: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Advance the state: inputs [M, input_size], state float32 [M, H] → float32 [M, H]."""
        return self._gru(self._gates(inputs), state)


class Decoder(keras.layers.Layer):
    """Attention GRU, Bahdanau attention and the language GRUs.

    Args:
      config: sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(name="decoder", autocast=False)
        hidden = config.hidden_size
        gates = 3 * hidden
        self._config = config
        self._word_gates = Projection(gates, name="word_gates")
        self._mean_gates = Projection(gates, use_bias=False, name="mean_gates")
        self._top_gates = Projection(gates, use_bias=False, name="top_gates")
        self._attention_gru = GruUpdate(hidden, "attention_gru")
        self.attention = BahdanauAttention(config.attention_size)
        # Attributes, not a list: TensorFlow's checkpoints do not see into Keras' lists.
        for index in range(config.num_layers - 1):
            setattr(self, f"language_{index}", LanguageLayer(hidden, f"language_{index}"))
        self._build_layers(hidden)

    def _build_layers(self, hidden: int) -> None:
        self._word_gates.build((None, self._config.embedding_size))
        self._mean_gates.build((None, hidden))
        self._top_gates.build((None, hidden))
        self.attention.build_for(hidden)
        for index, layer in enumerate(self._language_layers()):
            layer.build_for(2 * hidden if index == 0 else hidden)
        self.built = True

    def initial_state(self, rows: tf.Tensor | int) -> State:
        """Zeros: (num_layers ×) [M, H]."""
        zeros = tf.zeros([rows, self._config.hidden_size])
        return (zeros,) * self._config.num_layers

    def project_words(self, embedded: tf.Tensor) -> tf.Tensor:
        """The word's share of the attention GRU's input: [..., E] → [..., 3H]."""
        return self._word_gates(embedded)

    def project_mean(self, mean: tf.Tensor) -> tf.Tensor:
        """The mean grid's share of the attention GRU's input: [M, H] → [M, 3H]."""
        return self._mean_gates(mean)

    def call(
        self, projected: tf.Tensor, keys: tf.Tensor, cells: tf.Tensor, state: State
    ) -> tuple[State, tf.Tensor]:
        """Read one word and attend.

        Args:
          projected: project_words + project_mean, [M, 3H]; its dtype, which keys and cells
            have too, is the one computed in.
          keys: the attention's projection of the cells, [M, P, A].
          cells: [M, P, H].
          state: after the words before.

        Returns:
          State after this word; its last member predicts the next word. Attention
          weights float32 [M, P].
        """
        dtype = projected.dtype
        first, *above = state
        above[-1], fed_back = fork(above[-1], 2)
        gates = self._top_gates(tf.cast(fed_back, dtype))
        first, query, shown = fork(self._attention_gru(projected + gates, first), 3)
        context, weights = self.attention(query, keys, cells)
        inputs = tf.concat([context, tf.cast(shown, dtype)], axis=-1)
        states = [first]
        for layer, last in zip(self._language_layers(), above, strict=True):
            new, read = fork(layer(inputs, last), 2)
            states.append(new)
            inputs = tf.cast(read, dtype)
        return tuple(states), weights

    def _language_layers(self) -> list["LanguageLayer"]:
        return [getattr(self, f"language_{i}") for i in range(self._config.num_layers - 1)]
