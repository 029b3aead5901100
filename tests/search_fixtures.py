"""A tiny second-order language model, and all that it can say, enumerated without TensorFlow."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from model import search
from model.hypotheses import Hypotheses, SearchSettings

PAD, START, END, A, B = range(5)
WORDS = (A, B)
VOCABULARY, CELLS = 5, 3


def make_settings(width: int, max_length: int = 3, **rules: Any) -> SearchSettings:
    return SearchSettings(width, max_length, START, END, PAD, **rules)


def make_model(seed: int, batch: int, end_bias: float = 0.0) -> np.ndarray:
    """Logits of the next word, given image, the word before the last and the last: [N, V, V, V]."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (batch, VOCABULARY, VOCABULARY, VOCABULARY))
    logits[..., END] += end_bias
    return logits.astype(np.float32)


def make_step(
    table: np.ndarray | tf.Tensor, calls: list[int] | None = None
) -> Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any, tf.Tensor]]:
    """A step whose state is (image, word before the last); it notes its eager calls."""
    logits = tf.convert_to_tensor(table)

    def step(last: tf.Tensor, state: tuple) -> tuple:
        if calls is not None:
            calls.append(len(last))
        image, before = state
        chosen = tf.gather_nd(logits, tf.stack([image, before, last], axis=1))
        # The attention names the word that is read, so its history can be checked.
        return chosen, (image, last), tf.one_hot(last - END, CELLS)

    return step


def initial_state(batch: tf.Tensor | int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    images = tf.repeat(tf.range(batch), width)
    return images, tf.fill([batch * width], START)


def run(table: np.ndarray, settings: SearchSettings, calls: list[int] | None = None) -> Hypotheses:
    batch = len(table)
    state = initial_state(batch, settings.width)
    return search.beam(make_step(table, calls), state, batch, CELLS, settings)


def in_numpy(found: Hypotheses) -> Hypotheses:
    """As arrays, which are quicker to take apart."""
    return Hypotheses(*(values.numpy() for values in found))


def words_of(found: Hypotheses, image: int, rank: int) -> tuple[int, ...]:
    length = int(found.length[image, rank])
    return tuple(np.asarray(found.tokens[image, rank, :length]).tolist())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@dataclass(frozen=True)
class Caption:
    """One caption that may be written; `word_log_probs` are of its words, then of `<end>`."""

    words: tuple[int, ...]
    word_log_probs: tuple[float, ...]

    @property
    def log_prob(self) -> float:
        return sum(self.word_log_probs)

    def score(self, alpha: float) -> float:
        return self.log_prob / ((5 + len(self.words) + 1) / 6) ** alpha


def repeats_an_ngram(words: tuple[int, ...], size: int) -> bool:
    """By counting all of them; a size of 0 forbids nothing."""
    ngrams = [words[at : at + size] for at in range(len(words) - size + 1)]
    return size > 0 and len(set(ngrams)) < len(ngrams)


def enumerate_all(table: np.ndarray, settings: SearchSettings) -> list[Caption]:
    """Every caption of one image that the settings allow, best score first.

    Args:
      table: logits [V, V, V].
      settings: length and rules.
    """
    captions = _continue((), (), table, settings)
    return sorted(captions, key=lambda c: c.score(settings.length_penalty), reverse=True)


def may_follow(words: tuple[int, ...], settings: SearchSettings) -> list[int]:
    """Words, and `<end>`, that may stand after these."""
    going_on = [
        word
        for word in WORDS
        if len(words) < settings.max_length
        and word not in settings.blocked_ids
        and not repeats_an_ngram((*words, word), settings.block_ngrams)
    ]
    return going_on + [END] * (not going_on or len(words) >= settings.min_length)


def _continue(
    words: tuple[int, ...],
    log_probs: tuple[float, ...],
    table: np.ndarray,
    settings: SearchSettings,
) -> Iterator[Caption]:
    before, last = (START, START, *words)[-2:]
    scores = log_softmax(table[before, last])
    for word in may_follow(words, settings):
        longer = (*log_probs, float(scores[word]))
        if word == END:
            yield Caption(words, longer)
        else:
            yield from _continue((*words, word), longer, table, settings)


def assert_is(found: Hypotheses, image: int, rank: int, expected: Caption, alpha: float) -> None:
    """Words, and all numbers that go with them."""
    assert words_of(found, image, rank) == expected.words
    np.testing.assert_allclose(found.log_prob[image, rank], expected.log_prob, atol=1e-4)
    np.testing.assert_allclose(found.score[image, rank], expected.score(alpha), atol=1e-4)
    padded = np.zeros(found.word_log_probs.shape[-1])
    padded[: len(expected.word_log_probs)] = expected.word_log_probs
    np.testing.assert_allclose(found.word_log_probs[image, rank], padded, atol=1e-4)


def all_rules() -> list[dict[str, Any]]:
    """Every combination of a few values of the settings that change what is allowed or best."""
    return [
        {"length_penalty": alpha, "min_length": fewest, "block_ngrams": size}
        for alpha, fewest, size in itertools.product((0.0, 1.5), (0, 3, 6), (0, 1, 2, 3))
    ]


def best_only(settings: SearchSettings) -> SearchSettings:
    return replace(settings, best_only=True)
