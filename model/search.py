"""Beam search in the graph, over any step function.

A finished hypothesis keeps its place and its log-probability while others go on, and whatever
is unfinished after T words is closed by `<end>` at that word's own probability: all hypotheses
that are compared in the end are finished. Until then an unfinished one is worth what its words
so far would score as a caption, so that all are ranked by one measure.
"""

from dataclasses import replace
from typing import Any

import tensorflow as tf

from model.hypotheses import (
    Drafts,
    Hypotheses,
    SearchSettings,
    StepFunction,
    begin,
    collect,
    write_until,
)
from model.search_rules import NEVER, allowed, penalised, scores, written_length


def beam(
    step: StepFunction, state: Any, batch: tf.Tensor | int, cells: int, settings: SearchSettings
) -> Hypotheses:
    """Search for the K captions of every image that score best.

    Args:
      step: the model.
      state: before the first word, nested tensors of N·K rows.
      batch: N.
      cells: P, of the attention that `step` returns.
      settings: width, length, special ids and rules.

    Returns:
      Hypotheses, best first.
    """
    # All hypotheses start equal: only the first may count, or the beam holds copies.
    first = tf.concat([[0.0], tf.fill([settings.width - 1], NEVER)], axis=0)
    end = write_until(
        lambda drafts: _decided(drafts, settings),
        lambda drafts: _advance(step, drafts, settings),
        begin(state, cells, tf.tile(first[tf.newaxis], [batch, 1]), settings),
        settings,
    )
    return collect(end, scores(end, settings), settings)


def greedy(
    step: StepFunction, state: Any, batch: tf.Tensor | int, cells: int, settings: SearchSettings
) -> Hypotheses:
    """The most probable word at each step: a beam of one."""
    return beam(step, state, batch, cells, replace(settings, width=1))


def _decided(drafts: Drafts, settings: SearchSettings) -> tf.Tensor:
    """Whether going on would change nothing that is asked for: bool [N, 1] or [N, K].

    Log-probabilities only fall and are at most 0, so the best that an unfinished hypothesis
    can still score is its log-probability over the penalty of the greatest length. Whatever
    scores more can neither be overtaken nor crowded out of the beam.
    """
    if not settings.best_only:
        return drafts.finished
    if settings.length_penalty == 0.0:
        return drafts.finished[:, :1]
    bound = penalised(drafts.log_prob, settings.max_length + 1, settings)
    best = tf.where(drafts.finished, scores(drafts, settings), NEVER)
    rival = tf.where(drafts.finished, NEVER, bound)
    return tf.reduce_max(best, axis=1, keepdims=True) > tf.reduce_max(rival, axis=1, keepdims=True)


def _advance(step: StepFunction, current: Drafts, settings: SearchSettings) -> Drafts:
    """Let every hypothesis read its last word, and keep the K best of all continuations."""
    batch = tf.shape(current.log_prob)[0]
    logits, drafts = current.read(step, settings)
    log_probs, words = _continuations(logits, current, settings)
    continued = current.log_prob[..., tf.newaxis] + log_probs
    if settings.length_penalty > 0.0:
        # The finished keep their length.
        length = written_length(current, settings) + tf.cast(~current.finished, tf.int32)
        continued = penalised(continued, length[..., tf.newaxis], settings)
    _, best = tf.math.top_k(tf.reshape(continued, [batch, -1]), k=settings.width)

    def chosen(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(values, [batch, -1]), best, batch_dims=1)

    drafts = drafts.inherit(best // words.shape[-1])
    return drafts.write(chosen(words), chosen(log_probs), settings)


def _continuations(
    logits: tf.Tensor, current: Drafts, settings: SearchSettings
) -> tuple[tf.Tensor, tf.Tensor]:
    """The C = min(K, V) best next words of each hypothesis: the image's K best are among them.

    Finished: padding alone, for nothing. Too long: `<end>` alone. Words that are not allowed:
    never. The vocabulary is passed over as seldom as can be: this is most of a search's time.

    Args:
      logits: float32 [N·K, V].
      current: hypotheses so far.
      settings: special ids and rules.

    Returns:
      Log-probabilities float32 [N, K, C]; words int32 [N, K, C].
    """
    count = min(settings.width, logits.shape[-1])
    shape = [-1, settings.width, count]
    normaliser = tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
    best, words = tf.math.top_k(allowed(logits, current, settings), k=count)
    log_probs = tf.reshape(best - normaliser, shape)
    end = tf.reshape(logits[:, settings.end_id : settings.end_id + 1] - normaliser, shape[:2])
    # What must follow, as the first of C continuations; the others cannot be.
    finished = current.finished
    forced = finished | (current.time >= settings.max_length)
    only = tf.where(finished, 0.0, end)[..., tf.newaxis]
    rest = tf.fill([*tf.unstack(tf.shape(end)), count - 1], NEVER)
    log_probs = tf.where(forced[..., tf.newaxis], tf.concat([only, rest], -1), log_probs)
    word = tf.where(finished, settings.pad_id, settings.end_id)[..., tf.newaxis]
    words = tf.where(forced[..., tf.newaxis], word, tf.reshape(words, shape))
    return log_probs, words
