"""Captions drawn from a step function's distribution, in the graph.

Each word is drawn by inverting the cumulative distribution at a uniform number that is a
function of (seed, row, time) for a given T, on every device: row n·K + k is sample k of image
n. So an image's samples depend on its place in the batch and on nothing else of the batch.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from model.errors import InvalidInput
from model.hypotheses import (
    Drafts,
    Hypotheses,
    SearchSettings,
    StepFunction,
    begin,
    collect,
    write_until,
)
from model.search_rules import allowed, scores

_TEMPERATURES = (1e-4, 100.0)


@dataclass(frozen=True)
class SamplingSettings(SearchSettings):
    """How to draw; `width` is the number of samples an image, `best_only` has no meaning.

    The temperature comes first, then `top_k`, then `top_p` of what is left.

    Attributes:
      temperature: divides the logits, 0.0001 to 100; towards 0 the sample becomes greedy.
      top_k: only that many most probable words are drawn; 0 is all.
      top_p: only the nucleus is drawn, the fewest words of at least this probability together
        (Holtzman et al. 2020, section 3.1); above 0, 1 is all. Below 1 the words are sorted:
        slow on a CPU, unless `top_k` leaves few.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        low, high = _TEMPERATURES
        if not low <= self.temperature <= high:
            raise InvalidInput(f"temperature {self.temperature}, expected {low} to {high}")
        if self.top_k < 0:
            raise InvalidInput(f"top_k {self.top_k}, expected at least 0")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInput(f"top_p {self.top_p}, expected above 0, at most 1")


def sample(
    step: StepFunction,
    state: Any,
    batch: tf.Tensor | int,
    cells: int,
    settings: SamplingSettings,
    seed: tf.Tensor,
) -> Hypotheses:
    """Draw K captions of every image, independently.

    Args:
      step: the model.
      state: before the first word, nested tensors of N·K rows.
      batch: N.
      cells: P, of the attention that `step` returns.
      settings: number, length, special ids, rules and distribution.
      seed: int32 [2].

    Returns:
      Hypotheses in the order drawn. Log-probabilities are the model's own: at temperature 1,
      of all words, whatever could not be drawn included.
    """
    shape = [batch * settings.width, settings.max_length + 1]
    uniform = tf.random.stateless_uniform(shape, seed, alg="philox")
    end = write_until(
        lambda drafts: drafts.finished,
        lambda drafts: _advance(step, drafts, uniform, settings),
        begin(state, cells, tf.zeros([batch, settings.width]), settings),
        settings,
    )
    return collect(end, scores(end, settings), settings)


def _advance(
    step: StepFunction, current: Drafts, uniform: tf.Tensor, settings: SamplingSettings
) -> Drafts:
    """Let every sample read its last word, and append one that is drawn."""
    shape = [-1, settings.width]
    logits, drafts = current.read(step, settings)
    drawn = _draw(
        allowed(logits, current, settings), tf.gather(uniform, current.time, axis=1), settings
    )
    must_end = current.time >= settings.max_length
    word = tf.where(must_end, settings.end_id, tf.reshape(drawn, shape))
    word = tf.where(current.finished, settings.pad_id, word)
    chosen = tf.gather(logits, tf.reshape(word, [-1]), batch_dims=1)
    log_prob = tf.reshape(chosen - tf.reduce_logsumexp(logits, axis=-1), shape)
    return drafts.write(word, tf.where(current.finished, 0.0, log_prob), settings)


def _draw(logits: tf.Tensor, uniform: tf.Tensor, settings: SamplingSettings) -> tf.Tensor:
    """One word a row: logits float32 [M, V], uniform float32 [M] in [0, 1) → int32 [M]."""
    scaled = logits / settings.temperature
    if settings.top_k == 0 and settings.top_p == 1.0:
        return _invert(tf.nn.softmax(scaled), uniform)
    vocabulary_size = logits.shape[-1]
    count = min(settings.top_k or vocabulary_size, vocabulary_size)
    best, words = tf.math.top_k(scaled, k=count)
    mass = tf.nn.softmax(best)
    # A word belongs to the nucleus as long as those before it do not fill it.
    mass = tf.where(tf.cumsum(mass, axis=-1, exclusive=True) < settings.top_p, mass, 0.0)
    return tf.gather(words, _invert(mass, uniform), batch_dims=1)


def _invert(mass: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The first place of each row where the cumulative mass exceeds a share of the whole.

    A place without mass is never the answer, even where a parallel sum rounds unevenly.

    Args:
      mass: at least 0, float32 [M, C].
      uniform: shares, float32 [M], in [0, 1).

    Returns:
      int32 [M].
    """
    reached = tf.where(mass > 0.0, tf.cumsum(mass, axis=-1), 0.0)
    share = uniform[:, tf.newaxis] * tf.reduce_max(reached, axis=-1, keepdims=True)
    last = mass.shape[-1] - 1
    return tf.reduce_min(tf.where(reached > share, tf.range(last + 1), last), axis=-1)
