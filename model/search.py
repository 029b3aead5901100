"""Beam search in the graph, over any step function.

Scores are summed log-probabilities. A finished hypothesis keeps its place and its score
while others go on, and whatever is unfinished after T words is closed by `<end>` at that
word's own probability: all hypotheses that are compared in the end are finished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
      best_only: stop as soon as every image's best hypothesis is finished. Scores only fall,
        so nothing can overtake it; the hypotheses below it may be cut short.
    """

    width: int
    max_length: int
    start_id: int
    end_id: int
    pad_id: int
    blocked_ids: Sequence[int] = ()
    best_only: bool = False


class Hypotheses(NamedTuple):
    """Captions found, best first.

    Attributes:
      tokens: words, without `<end>`, padded, int32 [N, K, T].
      log_prob: of the words and `<end>`, float32 [N, K].
      length: words, int32 [N, K].
      attention: cells looked at for each word, float32 [N, K, T, P]; zero after the end.
    """

    tokens: tf.Tensor
    log_prob: tf.Tensor
    length: tf.Tensor
    attention: tf.Tensor


class _Beam(NamedTuple):
    time: tf.Tensor
    last: tf.Tensor
    state: Any
    tokens: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
    attention: tf.Tensor


def beam(
    step: StepFunction, state: Any, batch: tf.Tensor | int, cells: int, settings: SearchSettings
) -> Hypotheses:
    """Search for the K most probable captions of every image.

    Args:
      step: the model.
      state: before the first word, nested tensors of N·K rows.
      batch: N.
      cells: P, of the attention that `step` returns.
      settings: width, length and special ids.

    Returns:
      Hypotheses, best first.
    """
    width, steps = settings.width, settings.max_length + 1

    def advance(*flat: Any) -> _Beam:
        return _advance(step, _Beam(*flat), settings)

    def unfinished(*flat: Any) -> tf.Tensor:
        current = _Beam(*flat)
        counting = current.finished[:, :1] if settings.best_only else current.finished
        return (current.time < steps) & ~tf.reduce_all(counting)

    # All hypotheses start equal: only the first may count, or the beam holds copies.
    first = tf.concat([[0.0], tf.fill([width - 1], -float("inf"))], axis=0)
    start = _Beam(
        time=tf.constant(0),
        last=tf.fill([batch * width], settings.start_id),
        state=state,
        tokens=tf.fill([batch, width, steps], settings.pad_id),
        scores=tf.tile(first[tf.newaxis], [batch, 1]),
        finished=tf.zeros([batch, width], tf.bool),
        attention=tf.zeros([batch, width, steps, cells]),
    )
    end = _Beam(*tf.while_loop(unfinished, advance, start))
    written = (end.tokens != settings.pad_id) & (end.tokens != settings.end_id)
    words = tf.where(written, end.tokens, settings.pad_id)
    attention = tf.where(written[..., tf.newaxis], end.attention, 0.0)
    return Hypotheses(
        tokens=words[:, :, : settings.max_length],
        log_prob=end.scores,
        length=tf.reduce_sum(tf.cast(written, tf.int32), axis=-1),
        attention=attention[:, :, : settings.max_length],
    )


def greedy(
    step: StepFunction, state: Any, batch: tf.Tensor | int, cells: int, settings: SearchSettings
) -> Hypotheses:
    """The most probable word at each step: a beam of one."""
    return beam(step, state, batch, cells, replace(settings, width=1))


def _advance(step: StepFunction, current: _Beam, settings: SearchSettings) -> _Beam:
    """Let every hypothesis read its last word, and keep the K best of all continuations."""
    batch, width = tf.shape(current.scores)[0], settings.width
    logits, state, attention = step(current.last, current.state)
    log_probs, words = _continuations(logits, current, settings)
    continued = tf.reshape(current.scores[..., tf.newaxis] + log_probs, [batch, -1])
    scores, best = tf.math.top_k(continued, k=width)
    parent = best // words.shape[-1]
    word = tf.gather(tf.reshape(words, [batch, -1]), best, batch_dims=1)
    rows = tf.reshape(tf.range(batch)[:, tf.newaxis] * width + parent, [-1])

    def inherit(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, parent, batch_dims=1)

    now = tf.range(settings.max_length + 1) == current.time
    attention = tf.reshape(attention, [batch, width, -1])
    history = tf.where(now[:, tf.newaxis], attention[:, :, tf.newaxis], current.attention)
    return _Beam(
        time=current.time + 1,
        last=tf.reshape(word, [-1]),
        state=tf.nest.map_structure(lambda values: tf.gather(values, rows), state),
        tokens=tf.where(now, word[..., tf.newaxis], inherit(current.tokens)),
        scores=scores,
        finished=inherit(current.finished) | (word == settings.end_id),
        attention=inherit(history),
    )


def _continuations(
    logits: tf.Tensor, current: _Beam, settings: SearchSettings
) -> tuple[tf.Tensor, tf.Tensor]:
    """The C = min(K, V) best next words of each hypothesis: the image's K best are among them.

    Finished: padding alone, for nothing. Too long: `<end>` alone. Blocked words: never.
    The vocabulary is passed over as seldom as can be: this is most of a search's time.

    Args:
      logits: float32 [N·K, V].
      current: hypotheses so far.
      settings: special ids.

    Returns:
      Log-probabilities float32 [N, K, C]; words int32 [N, K, C].
    """
    count = min(settings.width, logits.shape[-1])
    shape = [-1, settings.width, count]
    never = -float("inf")
    normaliser = tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
    blocked = [settings.pad_id, settings.start_id, *settings.blocked_ids]
    penalty = tf.reduce_max(tf.one_hot(blocked, logits.shape[-1], 1.0, 0.0), axis=0)
    allowed = tf.where(penalty > 0, never, logits)
    best, words = tf.math.top_k(allowed, k=count)
    log_probs = tf.reshape(best - normaliser, shape)
    end = tf.reshape(logits[:, settings.end_id : settings.end_id + 1] - normaliser, shape[:2])
    # What must follow, as the first of C continuations; the others cannot be.
    finished = current.finished
    forced = finished | (current.time >= settings.max_length)
    only = tf.where(finished, 0.0, end)[..., tf.newaxis]
    rest = tf.fill([*tf.unstack(tf.shape(end)), count - 1], never)
    log_probs = tf.where(forced[..., tf.newaxis], tf.concat([only, rest], -1), log_probs)
    word = tf.where(finished, settings.pad_id, settings.end_id)[..., tf.newaxis]
    words = tf.where(forced[..., tf.newaxis], word, tf.reshape(words, shape))
    return log_probs, words
