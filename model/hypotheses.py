"""Captions while they are written and when they are found: what beam search and sampling share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

StepFunction = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any, tf.Tensor]]
"""(last words int32 [N·K], state) → logits [N·K, V], state, attention [N·K, P].

Rows of an image's hypotheses stand together; every tensor of a state has N·K rows.
"""


@dataclass(frozen=True)
class SearchSettings:
    """What to search for.

    Attributes:
      width: K, hypotheses kept.
      max_length: T, most words.
      start_id: first word read.
      end_id: word that finishes a hypothesis.
      pad_id: fills a finished hypothesis.
      blocked_ids: words that are never written.
      best_only: stop as soon as nothing can overtake any image's best hypothesis; those below
        it may be cut short.
      length_penalty: alpha, at least 0; see `search_rules.penalised`.
      min_length: fewest words, unless there is nothing else to write.
      block_ngrams: size of the n-grams that are written once at most; 0 blocks none.
    """

    width: int
    max_length: int
    start_id: int
    end_id: int
    pad_id: int
    blocked_ids: Sequence[int] = ()
    best_only: bool = False
    length_penalty: float = 0.0
    min_length: int = 0
    block_ngrams: int = 0


class Hypotheses(NamedTuple):
    """Captions found, by score, best first; samples in the order drawn.

    Where the settings allow fewer than K captions, the rest have a log_prob of -inf and
    words without meaning.

    Attributes:
      tokens: words, without `<end>`, padded, int32 [N, K, T].
      log_prob: of the words and `<end>`, float32 [N, K].
      length: words, int32 [N, K].
      attention: cells looked at for each word, float32 [N, K, T, P]; zero after the end.
      score: log_prob over the length's penalty, float32 [N, K].
      word_log_probs: of each word, then of `<end>`, float32 [N, K, T + 1]; zero after the end.
    """

    tokens: tf.Tensor
    log_prob: tf.Tensor
    length: tf.Tensor
    attention: tf.Tensor
    score: tf.Tensor
    word_log_probs: tf.Tensor


class Drafts(NamedTuple):
    """Hypotheses while they are written: the variables of a loop over words.

    Attributes:
      time: words written by the unfinished, int32 [].
      last: words to be read next, int32 [N·K].
      state: of the model, before it reads them.
      tokens: words and `<end>`, padded, int32 [N, K, T + 1].
      log_prob: of them, float32 [N, K].
      finished: whether `<end>` is written, bool [N, K].
      attention: float32 [N, K, T + 1, P].
      word_log_probs: float32 [N, K, T + 1].
    """

    time: tf.Tensor
    last: tf.Tensor
    state: Any
    tokens: tf.Tensor
    log_prob: tf.Tensor
    finished: tf.Tensor
    attention: tf.Tensor
    word_log_probs: tf.Tensor

    def read(self, step: StepFunction, settings: SearchSettings) -> tuple[tf.Tensor, "Drafts"]:
        """Let the model read the last words: logits [N·K, V], and drafts of its new state."""
        logits, state, attention = step(self.last, self.state)
        # P is known: of one cell, nothing else tells the loop that its shape stays.
        cells = self.attention.shape[-1]
        seen = tf.reshape(attention, [tf.shape(self.log_prob)[0], settings.width, cells])
        now = self._now(settings)[:, tf.newaxis]
        attention = tf.where(now, seen[:, :, tf.newaxis], self.attention)
        return logits, self._replace(state=state, attention=attention)

    def inherit(self, parent: tf.Tensor) -> "Drafts":
        """Put in each place the draft of another place of its image, int32 [N, K]."""
        batch, width = tf.shape(parent)[0], parent.shape[1]
        rows = tf.reshape(tf.range(batch)[:, tf.newaxis] * width + parent, [-1])

        def chosen(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, parent, batch_dims=1)

        return self._replace(
            state=tf.nest.map_structure(lambda values: tf.gather(values, rows), self.state),
            tokens=chosen(self.tokens),
            log_prob=chosen(self.log_prob),
            finished=chosen(self.finished),
            attention=chosen(self.attention),
            word_log_probs=chosen(self.word_log_probs),
        )

    def write(self, word: tf.Tensor, log_prob: tf.Tensor, settings: SearchSettings) -> "Drafts":
        """Append a word to each draft: int32 and float32 [N, K]; padding, for 0, if finished."""
        now = self._now(settings)
        return self._replace(
            time=self.time + 1,
            last=tf.reshape(word, [-1]),
            tokens=tf.where(now, word[..., tf.newaxis], self.tokens),
            log_prob=self.log_prob + log_prob,
            finished=self.finished | (word == settings.end_id),
            word_log_probs=tf.where(now, log_prob[..., tf.newaxis], self.word_log_probs),
        )

    def _now(self, settings: SearchSettings) -> tf.Tensor:
        return tf.range(settings.max_length + 1) == self.time


def begin(state: Any, cells: int, log_prob: tf.Tensor, settings: SearchSettings) -> Drafts:
    """Drafts without a word.

    Args:
      state: of the model before the first word, N·K rows.
      cells: P, of the attention.
      log_prob: that each starts with, float32 [N, K].
      settings: width, length and special ids.
    """
    batch, width, steps = tf.shape(log_prob)[0], settings.width, settings.max_length + 1
    return Drafts(
        time=tf.constant(0),
        last=tf.fill([batch * width], settings.start_id),
        state=state,
        tokens=tf.fill([batch, width, steps], settings.pad_id),
        log_prob=log_prob,
        finished=tf.zeros([batch, width], tf.bool),
        attention=tf.zeros([batch, width, steps, cells]),
        word_log_probs=tf.zeros([batch, width, steps]),
    )


def write_until(
    decided: Callable[[Drafts], tf.Tensor],
    advance: Callable[[Drafts], Drafts],
    drafts: Drafts,
    settings: SearchSettings,
) -> Drafts:
    """Advance until all of a bool tensor's values are true, or every draft has its `<end>`."""

    def undecided(*flat: Any) -> tf.Tensor:
        current = Drafts(*flat)
        return (current.time <= settings.max_length) & ~tf.reduce_all(decided(current))

    return Drafts(*tf.while_loop(undecided, lambda *flat: advance(Drafts(*flat)), drafts))


def collect(drafts: Drafts, score: tf.Tensor, settings: SearchSettings) -> Hypotheses:
    """What was written, without the special ids.

    Args:
      drafts: after the last word.
      score: of each, float32 [N, K].
      settings: length and special ids.
    """
    written = (drafts.tokens != settings.pad_id) & (drafts.tokens != settings.end_id)
    words = tf.where(written, drafts.tokens, settings.pad_id)
    attention = tf.where(written[..., tf.newaxis], drafts.attention, 0.0)
    return Hypotheses(
        tokens=words[:, :, : settings.max_length],
        log_prob=drafts.log_prob,
        length=tf.reduce_sum(tf.cast(written, tf.int32), axis=-1),
        attention=attention[:, :, : settings.max_length],
        score=score,
        word_log_probs=drafts.word_log_probs,
    )
