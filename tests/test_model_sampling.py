"""Samples against the distribution that they are said to come from."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import sampling, search
from model.errors import InvalidInput
from model.hypotheses import Hypotheses
from model.sampling import SamplingSettings
from tests.search_fixtures import (
    CELLS,
    END,
    PAD,
    START,
    VOCABULARY,
    WORDS,
    enumerate_all,
    initial_state,
    make_model,
    make_settings,
    make_step,
    may_follow,
    repeats_an_ngram,
    words_of,
)

# The largest value of chi-square that one sample in ten thousand exceeds, by degrees of freedom.
CHI_SQUARE_LIMITS = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9}


def make(width: int, max_length: int = 2, **rules: Any) -> SamplingSettings:
    return SamplingSettings(width, max_length, START, END, PAD, **rules)


def draw(table: np.ndarray, settings: SamplingSettings, seed: tuple[int, int]) -> Hypotheses:
    batch = len(table)
    state = initial_state(batch, settings.width)
    return sampling.sample(
        make_step(table), state, batch, CELLS, settings, tf.constant(seed, tf.int32)
    )


def word_probabilities(
    logits: np.ndarray, allowed: list[int], settings: SamplingSettings
) -> dict[int, float]:
    """Of each word that may be drawn: temperature, then top_k, then the nucleus."""
    scaled = {word: float(logits[word]) / settings.temperature for word in allowed}
    best = sorted(allowed, key=lambda word: -scaled[word])
    best = best[: settings.top_k or len(best)]
    total = sum(np.exp(scaled[word]) for word in best)
    nucleus: dict[int, float] = {}
    for word in best:
        if sum(nucleus.values()) < settings.top_p:
            nucleus[word] = float(np.exp(scaled[word]) / total)
    return {word: mass / sum(nucleus.values()) for word, mass in nucleus.items()}


def caption_probabilities(
    table: np.ndarray, settings: SamplingSettings, words: tuple[int, ...] = ()
) -> dict[tuple[int, ...], float]:
    """Of every caption that may be drawn, [V, V, V] → words: probability."""
    before, last = (START, START, *words)[-2:]
    found: dict[tuple[int, ...], float] = {}
    allowed = may_follow(words, settings)
    for word, share in word_probabilities(table[before, last], allowed, settings).items():
        longer = {words: 1.0}
        if word != END:
            longer = caption_probabilities(table, settings, (*words, word))
        found |= {caption: share * mass for caption, mass in longer.items()}
    return found


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 50},
        {"top_p": 0.1},
        {"top_p": 0.7},
        {"top_p": 0.95},
        {"temperature": 2.0, "top_k": 2, "top_p": 0.6},
        {"temperature": 0.5, "top_p": 0.8, "min_length": 1},
        {"block_ngrams": 1},
    ],
    ids=str,
)
def test_captions_are_drawn_as_often_as_they_should(rules: dict[str, Any]) -> None:
    table = make_model(17, 2)
    settings = make(4000, **rules)
    found = draw(table, settings, (3, 4))
    for image in range(2):
        expected = caption_probabilities(table[image], settings)
        assert sum(expected.values()) == pytest.approx(1.0)
        lengths, tokens = found.length[image].numpy(), found.tokens[image].numpy()
        counts: dict[tuple[int, ...], int] = {}
        for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
            counts[tuple(row[:length])] = counts.get(tuple(row[:length]), 0) + 1
        assert set(counts) <= set(expected)
        if len(expected) > 1:
            chi_square = sum(
                (counts.get(words, 0) - 4000 * share) ** 2 / (4000 * share)
                for words, share in expected.items()
            )
            assert chi_square < CHI_SQUARE_LIMITS[len(expected) - 1]


@pytest.mark.parametrize("seed", range(3))
def test_without_temperature_samples_are_greedy(seed: int) -> None:
    table = make_model(seed, 6, end_bias=-0.5)
    settings = make(2, 5, temperature=1e-4)
    found = draw(table, settings, (seed, 0))
    expected = search.greedy(
        make_step(table), initial_state(6, 1), 6, CELLS, make_settings(1, max_length=5)
    )
    for sample in range(2):
        np.testing.assert_array_equal(found.tokens[:, sample], expected.tokens[:, 0])
        for name in ("log_prob", "attention", "score", "word_log_probs"):
            np.testing.assert_allclose(
                getattr(found, name)[:, sample], getattr(expected, name)[:, 0], rtol=1e-5
            )


def test_log_probabilities_are_the_models_own() -> None:
    table = make_model(8, 3)
    settings = make(20, 4, temperature=2.5, top_k=2, top_p=0.9, length_penalty=0.5)
    found = draw(table, settings, (1, 2))
    for image in range(3):
        truth = {caption.words: caption for caption in enumerate_all(table[image], settings)}
        for rank in range(20):
            caption = truth[words_of(found, image, rank)]
            np.testing.assert_allclose(found.log_prob[image, rank], caption.log_prob, rtol=1e-4)
            np.testing.assert_allclose(found.score[image, rank], caption.score(0.5), rtol=1e-4)
            padded = np.zeros(5)
            padded[: len(caption.word_log_probs)] = caption.word_log_probs
            np.testing.assert_allclose(found.word_log_probs[image, rank], padded, rtol=1e-4)
            assert (found.tokens[image, rank, len(caption.words) :].numpy() == PAD).all()


def test_draws_are_a_function_of_seed_row_and_time() -> None:
    table = np.repeat(make_model(4, 1, end_bias=-4.0), 5, axis=0)
    settings = make(3, 6, temperature=20.0, min_length=6)
    found = draw(table, settings, (5, 6)).tokens.numpy()
    np.testing.assert_array_equal(found, draw(table, settings, (5, 6)).tokens)
    np.testing.assert_array_equal(found[:2], draw(table[:2], settings, (5, 6)).tokens)
    for other in ((5, 7), (6, 6), (6, 5)):
        assert (found != draw(table, settings, other).tokens.numpy()).any(axis=-1).mean() > 0.5
    # Equal images, and still each row is drawn by itself.
    assert len({tuple(row) for row in found.reshape(15, 6).tolist()}) > 10


def test_rules_hold_for_samples() -> None:
    table = make_model(9, 4, end_bias=2.0)
    settings = make(50, 8, min_length=3, block_ngrams=2, temperature=5.0)
    found = draw(table, settings, (0, 0))
    drawn = {words_of(found, image, rank) for image in range(4) for rank in range(50)}
    assert min(len(words) for words in drawn) == 3
    assert not any(repeats_an_ngram(words, 2) for words in drawn)
    assert {word for words in drawn for word in words} == set(WORDS)


def test_samples_end_when_the_model_never_ends_them() -> None:
    table = make_model(0, 2, end_bias=-30.0)
    found = draw(table, make(3, 4), (0, 1))
    assert found.length.numpy().tolist() == [[4, 4, 4], [4, 4, 4]]
    assert (found.word_log_probs[..., 4].numpy() < -20).all()


def test_a_compiled_graph_draws_the_same() -> None:
    settings = make(3, 6, top_p=0.9, min_length=2, block_ngrams=2)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *[VOCABULARY] * 3], tf.float32),
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def graph(table: tf.Tensor, seed: tf.Tensor) -> Hypotheses:
        batch = tf.shape(table)[0]
        state = initial_state(batch, settings.width)
        return sampling.sample(make_step(table), state, batch, CELLS, settings, seed)

    for batch in (1, 4):
        table = make_model(batch, batch)
        expected = draw(table, settings, (batch, 9))
        found = graph(tf.constant(table), tf.constant([batch, 9]))
        np.testing.assert_array_equal(expected.tokens, found.tokens)
        np.testing.assert_allclose(expected.log_prob, found.log_prob, rtol=1e-5)


def test_no_word_without_mass_is_ever_drawn() -> None:
    """At the very ends of the range of uniform numbers."""
    mass = tf.constant([[0.0, 0.3, 0.0, 0.7, 0.0]] * 4)
    uniform = tf.constant([0.0, 0.29, 0.31, 1 - 2.0**-23])
    assert sampling._invert(mass, uniform).numpy().tolist() == [1, 1, 3, 3]


def test_an_unevenly_rounded_sum_draws_no_word_without_mass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a parallel sum may round, only that it is by much less."""
    monkeypatch.setattr(tf, "cumsum", lambda *_, **__: tf.constant([[0.5, 0.6, 1.0, 1.1]]))
    mass = tf.constant([[0.5, 0.0, 0.5, 0.0]])
    drawn = [int(sampling._invert(mass, tf.constant([u]))[0]) for u in (0.4, 0.55, 0.999)]
    assert drawn == [0, 2, 2]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0, expected 0.0001 to 100.0"),
        ({"temperature": float("nan")}, "temperature nan, expected 0.0001 to 100.0"),
        ({"top_k": -1}, "top_k -1, expected at least 0"),
        ({"top_p": 0.0}, "top_p 0.0, expected above 0, at most 1"),
        ({"top_p": 1.5}, "top_p 1.5, expected above 0, at most 1"),
        ({"top_p": float("nan")}, "top_p nan, expected above 0, at most 1"),
    ],
)
def test_wrong_settings_are_named(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make(1, **rules)
    assert str(error.value) == message
