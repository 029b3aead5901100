"""The captioner: grid in, distribution over the next word out, as one keras.Model."""

from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from model.config import DecoderConfig
from model.decoder import Decoder, State
from model.output import TiedOutput
from model.projection import Projection
from model.summation import fork
from model.training_config import FLOAT32

# Keeps the scale of a channel that never varies finite.
_VARIANCE_FLOOR = 1e-6
# Keeps a cell that shows next to nothing from being blown up.
_LEAST_SQUARE = 1e-2
# Dropout of cells, embeddings and output, and which words are sampled and how, draw apart.
_CELLS, _EMBEDDINGS, _OUTPUT, _SAMPLED, _SAMPLES = range(5)
_DRAWS = 5


@dataclass(frozen=True)
class Memory:
    """What the decoder sees of the images; a row an image, or a row a caption after `rows`.

    Its dtype is the one in which the decoder multiplies matrices.

    Attributes:
      cells: projected grid, [N, P, H].
      keys: the attention's projection of the cells, [N, P, A].
      mean_gates: the mean cell's share of the attention GRU's input, [N, 3H].
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


@dataclass(frozen=True)
class Kept:
    """The units that dropout keeps at every place of M captions: 0, or the kept ones' scale.

    Attributes:
      embedding: float32 [M, T, E].
      output: float32 [M, T, H].
    """

    embedding: tf.Tensor
    output: tf.Tensor

    def until(self, length: tf.Tensor) -> "Kept":
        """Of the first places alone, int32 []."""
        return Kept(self.embedding[:, :length], self.output[:, :length])


class _Place(NamedTuple):
    """A place of M captions, all T of them stacked for a scan."""

    time: tf.Tensor
    given: tf.Tensor
    drawn: tf.Tensor
    kept_embedding: tf.Tensor
    kept_output: tf.Tensor


class _Sampling(NamedTuple):
    """After a place: the state, the word drawn for the next one, the word that was read."""

    state: State
    written: tf.Tensor
    word: tf.Tensor


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
        self._cell_projection = Projection(config.hidden_size, name="cell_projection")
        # Convolutions hardly tell where a cell lies, captions often do.
        self._cell_position = self.add_weight(
            shape=(cells, config.hidden_size), initializer="random_normal", name="cell_position"
        )
        self._embedding = keras.layers.Embedding(
            vocabulary_size, config.embedding_size, name="embedding"
        )
        self._decoder = Decoder(config)
        self._cell_projection.build((None, cells, features))
        self._embedding.build((None, None))
        if config.tie_embeddings:
            self._tied_output = TiedOutput(vocabulary_size)
            self._tied_output.build_for(config.hidden_size, config.embedding_size)
        else:
            self._output = Projection(vocabulary_size, name="output")
            self._output.build((None, config.hidden_size))
        self.built = True

    def set_grid_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Normalise grids by these statistics of the training split, float32 [F] each."""
        self._grid_mean.assign(mean)
        self._grid_variance.assign(variance)

    def look(
        self,
        grid: tf.Tensor,
        dropout_seed: tf.Tensor | None = None,
        precision: str = FLOAT32,
    ) -> Memory:
        """Compute once an image what every word of its captions will use.

        Args:
          grid: float16 or float32 [N, P, F].
          dropout_seed: int32 [2] in training, None otherwise.
          precision: of training_config.PRECISIONS, of matmuls and attention, here and for all
            words; weights, states, softmax and logits are float32 in each.
        """
        scale = tf.math.rsqrt(self._grid_variance + _VARIANCE_FLOOR)
        normalised = (tf.cast(grid, tf.float32) - self._grid_mean) * scale
        cells = tf.cast(self._cell_projection(tf.cast(normalised, precision)), tf.float32)
        if self.config.normalise_cells:
            # Cells that show much are many times as long as others. Without this their keys
            # saturate the attention's tanh, so that no query can choose among them, and drown
            # the learnt place: the decoder then reads an object from the cells around it.
            square = tf.reduce_mean(tf.square(cells), axis=-1, keepdims=True)
            cells *= tf.math.rsqrt(square + _LEAST_SQUARE)
        cells = tf.nn.relu(cells + self._cell_position)
        cells = self._drop(cells, dropout_seed, _CELLS)
        averaged, cells = fork(cells, 2)
        mean, cells = (tf.cast(x, precision) for x in (tf.reduce_mean(averaged, axis=1), cells))
        return Memory(
            cells=cells,
            keys=self._decoder.attention.keys(cells),
            mean_gates=self._decoder.project_mean(mean),
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
          Logits [M, V], the new state, attention weights [M, P]; float32.
        """
        state, weights = self._advance(self._embedding(tokens), state, memory)
        return self._logits(state[-1], memory), state, weights

    def kept(self, rows: tf.Tensor | int, words: tf.Tensor | int, seed: tf.Tensor) -> Kept:
        """The units of M captions of T words that `call` keeps with a seed, int32 [2]."""
        sizes = {_EMBEDDINGS: self.config.embedding_size, _OUTPUT: self.config.hidden_size}
        units = [
            self._drop(tf.ones([rows, words, size]), seed, place) for place, size in sizes.items()
        ]
        return Kept(*units)

    def practise(
        self, tokens: tf.Tensor, time: tf.Tensor, state: State, memory: Memory, kept: Kept
    ) -> tuple[tf.Tensor, State, tf.Tensor]:
        """`step` with units dropped as in training.

        Args:
          tokens: int32 [M].
          time: place of the words, int32 [].
          state: after the words before.
          memory: of M rows.
          kept: units of the M captions.
        """
        embedded = self._embedding(tokens) * kept.embedding[:, time]
        state, weights = self._advance(embedded, state, memory)
        return self._logits(state[-1] * kept.output[:, time], memory), state, weights

    def read(
        self,
        tokens: tf.Tensor,
        memory: Memory,
        kept: Kept,
        places: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What `practise` predicts at each word of whole captions.

        Args:
          tokens: `<start>` first, int32 [M, T].
          memory: of M rows.
          kept: units at the T places.
          places: see `call`.

        Returns:
          As `call`.
        """
        states, weights = self._read(self._embedding(tokens) * kept.embedding, memory)
        return self._logits(states * kept.output, memory, places), weights

    def _advance(
        self, embedded: tf.Tensor, state: State, memory: Memory
    ) -> tuple[State, tf.Tensor]:
        """Words' embeddings [M, E] → the state after them, attention weights [M, P]."""
        words = self._decoder.project_words(tf.cast(embedded, memory.cells.dtype))
        projected = words + memory.mean_gates
        return self._decoder(projected, memory.keys, memory.cells, state)

    def call(
        self,
        grid: tf.Tensor,
        tokens: tf.Tensor,
        image_index: tf.Tensor,
        seed: tf.Tensor | None = None,
        sampling_share: tf.Tensor | None = None,
        precision: str = FLOAT32,
        places: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Teacher forcing: every word of every caption, predicted from the words before it.

        Args:
          grid: float16 or float32 [N, P, F].
          tokens: words read, `<start>` first, int32 [M, T].
          image_index: row of `grid` for each caption, int32 [M].
          seed: int32 [2] in training, of dropout and samples; None otherwise.
          sampling_share: scheduled sampling (Bengio et al. 2015): the share float32 [] of words
            that are read as the model would have written them; None reads the captions.
          precision: see `look`.
          places: bool [M, T], where logits are asked for: padding costs as much as a word, and
            the vocabulary most of all. None is everywhere.

        Returns:
          Logits [M, T, V], for the word after each, or [places, V], row by row; attention weights
          [M, T, P]; float32.
        """
        memory = self.look(grid, seed, precision).rows(image_index)
        if seed is not None and sampling_share is not None:
            tokens = self._partly_sampled(tokens, memory, seed, sampling_share)
        # Units are drawn in float32, so that each precision drops the same.
        embedded = self._drop(self._embedding(tokens), seed, _EMBEDDINGS)
        states, weights = self._read(embedded, memory)
        return self._logits(self._drop(states, seed, _OUTPUT), memory, places), weights

    def _read(self, embedded: tf.Tensor, memory: Memory) -> tuple[tf.Tensor, tf.Tensor]:
        """Embeddings [M, T, E] → top states [M, T, H], attention weights [M, T, P]."""
        words = self._decoder.project_words(tf.cast(embedded, memory.cells.dtype))
        projected = words + memory.mean_gates[:, tf.newaxis]

        def advance(carried: tuple[State, tf.Tensor], word: tf.Tensor) -> tuple[State, tf.Tensor]:
            state, _ = carried
            return self._decoder(word, memory.keys, memory.cells, state)

        nowhere = tf.zeros_like(memory.cells[..., 0], tf.float32)
        start = (self.initial_state(tf.shape(embedded)[0]), nowhere)
        states, weights = tf.scan(advance, tf.transpose(projected, [1, 0, 2]), start)
        return tf.transpose(states[-1], [1, 0, 2]), tf.transpose(weights, [1, 0, 2])

    def _partly_sampled(
        self, tokens: tf.Tensor, memory: Memory, seed: tf.Tensor, share: tf.Tensor
    ) -> tf.Tensor:
        """Put the model's own words, drawn one after the other, in a share of the places.

        A pass of its own: no gradient goes through a word that was drawn, so `_read` then reads
        these words as it reads a caption, with the same units dropped.

        Args:
          tokens: int32 [M, T].
          memory: of M rows.
          seed: int32 [2].
          share: float32 [].

        Returns:
          int32 [M, T]; the first of each row is never drawn.
        """
        rows, words = tf.unstack(tf.shape(tokens))
        drawn = tf.random.stateless_uniform([rows, words], _draw(seed, _SAMPLED)) < share
        kept = self.kept(rows, words, seed)

        def advance(carried: _Sampling, now: _Place) -> _Sampling:
            word = tf.where(now.drawn, carried.written, now.given)
            embedded = self._embedding(word) * now.kept_embedding
            state, _ = self._advance(embedded, carried.state, memory)
            logits = self._logits(state[-1] * now.kept_output, memory)
            place = tf.random.experimental.stateless_fold_in(_draw(seed, _SAMPLES), now.time)
            written = tf.random.stateless_categorical(logits, 1, place, dtype=tf.int32)[:, 0]
            return _Sampling(state, written, word)

        first = tokens[:, 0]
        places = _Place(
            tf.range(words),
            tf.transpose(tokens),
            tf.transpose(drawn),
            tf.transpose(kept.embedding, [1, 0, 2]),
            tf.transpose(kept.output, [1, 0, 2]),
        )
        # In the first place a drawn word is the given one.
        start = _Sampling(self.initial_state(rows), first, first)
        return tf.transpose(tf.scan(advance, places, start).word)

    def _logits(self, top: tf.Tensor, memory: Memory, places: tf.Tensor | None = None) -> tf.Tensor:
        """States of the top GRU [..., H] → [..., V], computed in the memory's dtype; float32."""
        if places is not None:
            top = tf.boolean_mask(top, places)
        top = tf.cast(top, memory.cells.dtype)
        if self.config.tie_embeddings:
            logits = self._tied_output(top, self._embedding.embeddings)
        else:
            logits = self._output(top)
        return tf.cast(logits, tf.float32)

    def _drop(self, values: tf.Tensor, seed: tf.Tensor | None, place: int) -> tf.Tensor:
        """Dropout drawn from a seed, so that a resumed run draws what an undisturbed one did."""
        if seed is None or self.config.dropout == 0.0:
            return values
        return tf.nn.experimental.stateless_dropout(
            values, self.config.dropout, seed=_draw(seed, place)
        )


def _draw(seed: tf.Tensor, place: int) -> tf.Tensor:
    """The seed of one of a step's draws."""
    return seed * [1, _DRAWS] + [0, place]
