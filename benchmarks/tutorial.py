"""The captioner as well-known tutorials write and train one: the baseline of `benchmarks train`.

The same network as model/captioner.py, weight for weight, organised as "Image captioning with
visual attention" does it: a Python loop over time inside `tf.function`, attention keys computed
anew and the vocabulary projected at each word, float32 throughout, a copy of its image's grid for
each caption, and one trace for each length of a batch.
"""

import keras
import tensorflow as tf

from model.config import DecoderConfig


class Attention(keras.layers.Layer):
    """Additive attention, keys and all in one call."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.query = keras.layers.Dense(units)
        self.key = keras.layers.Dense(units, use_bias=False)
        self.score = keras.layers.Dense(1, use_bias=False)

    def call(self, cells: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
        """Cells [M, P, H] and a state [M, H] → context [M, H]."""
        scores = self.score(tf.tanh(self.key(cells) + self.query(hidden)[:, tf.newaxis]))
        return tf.reduce_sum(tf.nn.softmax(scores, axis=1) * cells, axis=1)


class Tutorial(keras.Model):
    """Encoder projection, embedding, attention GRU, language GRU, output.

    Args:
      config: sizes, of two GRUs.
      vocabulary_size: V.
      cells: P.
    """

    def __init__(self, config: DecoderConfig, vocabulary_size: int, cells: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.project = keras.layers.Dense(hidden)
        self.position = self.add_weight(shape=(cells, hidden), initializer="random_normal")
        self.embed = keras.layers.Embedding(vocabulary_size, config.embedding_size)
        self.attend = Attention(config.attention_size)
        self.attention_gru = keras.layers.GRUCell(hidden)
        self.language_gru = keras.layers.GRUCell(hidden)
        self.vocabulary = keras.layers.Dense(vocabulary_size)

    def encode(self, grid: tf.Tensor) -> tf.Tensor:
        """Grids float32 [M, P, F] → cells [M, P, H]."""
        return tf.nn.relu(self.project(grid) + self.position)

    def word(
        self, tokens: tf.Tensor, cells: tf.Tensor, states: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """Read words int32 [M]; logits [M, V] and the new states."""
        seen = tf.concat([self.embed(tokens), tf.reduce_mean(cells, axis=1), states[1]], axis=-1)
        query, _ = self.attention_gru(seen, states[0])
        context = self.attend(cells, query)
        top, _ = self.language_gru(tf.concat([context, query], axis=-1), states[1])
        return self.vocabulary(top), (query, top)


class TutorialStep:
    """A step of training, called with what a batch of ours says.

    Args:
      model: to be trained.
      clip_norm: of the gradients.
      learning_rate: Adam's.
    """

    def __init__(self, model: Tutorial, clip_norm: float, learning_rate: float) -> None:
        self.model, self._clip_norm = model, clip_norm
        self._optimizer = keras.optimizers.Adam(learning_rate)

    def __call__(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """Train on a batch; the loss."""
        # Each caption is an example with a grid of its own.
        grid = tf.cast(tf.gather(batch["grid"], batch["image_index"]), tf.float32)
        return self._step(grid, batch["inputs"], batch["labels"])

    @tf.function
    def _step(self, grid: tf.Tensor, inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        rows, words = inputs.shape
        loss = 0.0
        with tf.GradientTape() as tape:
            cells = self.model.encode(grid)
            states = (tf.zeros([rows, cells.shape[-1]]),) * 2
            for time in range(words):
                logits, states = self.model.word(inputs[:, time], cells, states)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, time], logits)
                loss += tf.reduce_sum(losses * tf.cast(labels[:, time] != 0, tf.float32))
            loss /= tf.reduce_sum(tf.cast(labels != 0, tf.float32))
        variables = self.model.trainable_variables
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, variables), self._clip_norm)
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss
