"""Beam search against the enumeration of every sequence of a tiny vocabulary."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import search
from model.search_rules import repeating_words
from tests.search_fixtures import (
    CELLS,
    END,
    PAD,
    START,
    VOCABULARY,
    A,
    B,
    all_rules,
    assert_is,
    best_only,
    enumerate_all,
    in_numpy,
    initial_state,
    make_model,
    make_settings,
    make_step,
    repeats_an_ngram,
    run,
    words_of,
)

OUTPUTS = ("tokens", "log_prob", "length", "attention", "score", "word_log_probs")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("end_bias", [-2.0, 0.0, 2.0])
def test_wide_beam_finds_every_caption_in_order(seed: int, end_bias: float) -> None:
    table = make_model(seed, 2, end_bias)
    # 1 + 2 + 4 + 8 captions of at most three words: wide enough to lose none.
    settings = make_settings(width=15)
    found = in_numpy(run(table, settings))
    for image in range(2):
        expected = enumerate_all(table[image], settings)
        assert len(expected) == 15
        for rank, caption in enumerate(expected):
            assert_is(found, image, rank, caption, alpha=0.0)


@pytest.mark.parametrize("rules", all_rules(), ids=str)
def test_wide_beam_finds_all_that_the_rules_allow_by_score(rules: dict[str, Any]) -> None:
    table = make_model(21, 2, end_bias=-0.5)
    # 2^7 - 1 captions of at most six words.
    settings = make_settings(width=127, max_length=6, **rules)
    found = in_numpy(run(table, settings))
    for image in range(2):
        expected = enumerate_all(table[image], settings)
        # Captions of the same transitions in another order tie: their rank is left open.
        truth = {caption.words: caption for caption in expected}
        ranked = [words_of(found, image, rank) for rank in range(len(expected))]
        assert set(ranked) == set(truth)
        for rank, words in enumerate(ranked):
            assert_is(found, image, rank, truth[words], settings.length_penalty)
        best_first = [caption.score(settings.length_penalty) for caption in expected]
        np.testing.assert_allclose(found.score[image, : len(expected)], best_first, atol=1e-4)
        assert (found.log_prob[image, len(expected) :] == -np.inf).all()


def test_the_rules_of_the_enumeration_bite() -> None:
    """Otherwise the test above would compare the same captions again and again."""
    table = make_model(21, 1, end_bias=-0.5)[0]
    plain = make_settings(width=127, max_length=6)

    def captions(**rules: Any) -> list[tuple[int, ...]]:
        return [caption.words for caption in enumerate_all(table, replace(plain, **rules))]

    assert captions(length_penalty=2.0) != captions()
    assert len(captions(min_length=6)) == 64
    assert set(captions(block_ngrams=1)) == {(), (A,), (B,), (A, B), (B, A)}
    # Nothing else is left after two words, so they end before the third.
    assert set(captions(block_ngrams=1, min_length=3)) == {(A, B), (B, A)}
    assert (A, A, A) in captions(block_ngrams=3)
    assert (A, A, A, A) not in captions(block_ngrams=3)
    assert (A, A, B, B, A) in captions(block_ngrams=2)
    assert (A, A, B, A, A) not in captions(block_ngrams=2)


@pytest.mark.parametrize("rules", [{}, {"length_penalty": 1.0}], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_narrow_beam_scores_are_those_of_its_words(seed: int, rules: dict[str, Any]) -> None:
    table = make_model(seed, 3)
    settings = make_settings(width=2, max_length=5, **rules)
    found = run(table, settings)
    for image in range(3):
        truth = {caption.words: caption for caption in enumerate_all(table[image], settings)}
        for rank in range(2):
            caption = truth[words_of(found, image, rank)]
            assert_is(found, image, rank, caption, settings.length_penalty)
        assert words_of(found, image, 0) != words_of(found, image, 1)
    assert np.all(np.diff(found.score.numpy(), axis=1) <= 0)


def test_greedy_takes_the_best_word_each_time() -> None:
    table = make_model(3, 4, end_bias=-1.0)
    settings = make_settings(width=7)
    found = search.greedy(make_step(table), initial_state(4, 1), 4, CELLS, settings)
    assert found.tokens.shape == (4, 1, 3)
    for image in range(4):
        before, last = START, START
        words: list[int] = []
        while len(words) < 3:
            row = table[image, before, last].copy()
            row[[PAD, START]] = -np.inf
            before, last = last, int(row.argmax())
            if last == END:
                break
            words.append(last)
        assert words_of(found, image, 0) == tuple(words)


def test_captions_end_when_the_model_never_ends_them() -> None:
    table = make_model(0, 2, end_bias=-30.0)
    found = run(table, make_settings(width=3, max_length=4))
    assert found.length.numpy().tolist() == [[4, 4, 4], [4, 4, 4]]
    assert np.isfinite(found.log_prob.numpy()).all()
    assert not np.isin(found.tokens.numpy(), [START, END]).any()


@pytest.mark.parametrize(
    "rules", [{}, {"length_penalty": 1.0, "min_length": 3, "block_ngrams": 2}], ids=str
)
def test_a_caption_does_not_depend_on_its_batch_mates(rules: dict[str, Any]) -> None:
    table = make_model(5, 6, end_bias=1.0)
    settings = make_settings(width=3, max_length=6, **rules)
    together = run(table, settings)
    for image in range(6):
        alone = run(table[image : image + 1], settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[image])
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[image], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("rules", [{}, {"min_length": 2, "block_ngrams": 2}], ids=str)
def test_stopping_at_the_best_changes_nothing_of_it(
    seed: int, alpha: float, rules: dict[str, Any]
) -> None:
    table = make_model(seed, 8, end_bias=0.5)
    settings = make_settings(3, max_length=6, length_penalty=alpha, **rules)
    full, early = run(table, settings), run(table, best_only(settings))
    for name in OUTPUTS:
        np.testing.assert_array_equal(getattr(full, name)[:, 0], getattr(early, name)[:, 0])


def certain_after_a_first_word(end: float) -> np.ndarray:
    """`<end>` at once with a probability, or else A, and then A for ever: [1, V, V, V]."""
    table = np.full((1, VOCABULARY, VOCABULARY, VOCABULARY), -30.0, np.float32)
    table[..., A] = 0.0
    table[0, START, START, [END, A]] = np.log([end, 1 - end])
    # After `max_length` words `<end>` has to follow; it shall cost little.
    table[0, A, A, END] = np.log(0.05)
    return table


@pytest.mark.parametrize(
    ("end", "alpha", "steps", "length"),
    [
        # An end is worth log .7 = -.36; A may at most reach log .3 / (11/6) = -.66.
        (0.7, 1.0, 1, 0),
        # log .55 = -.60 is ahead of log .45 = -.80 for A, which may still reach -.44: the search
        # goes on, and A comes to -2.2 in the end.
        (0.55, 1.0, 6, 0),
        # The same, but divided by (11/6)^6 = 38 A wins.
        (0.55, 6.0, 6, 5),
        # Nothing gains by its length.
        (0.55, 0.0, 1, 0),
    ],
)
def test_search_stops_as_soon_as_nothing_can_overtake(
    end: float, alpha: float, steps: int, length: int
) -> None:
    table = certain_after_a_first_word(end)
    settings = make_settings(width=2, max_length=5, length_penalty=alpha)
    calls: list[int] = []
    found = run(table, best_only(settings), calls)
    assert len(calls) == steps
    assert found.length[0, 0] == length
    # Asked for all, it goes on until each has its end.
    calls.clear()
    run(table, settings, calls)
    assert len(calls) == 6


def test_a_search_of_a_batch_goes_on_for_whom_it_must() -> None:
    """The first image could stop at once, the second is overtaken."""
    table = np.concatenate([certain_after_a_first_word(0.99), certain_after_a_first_word(0.55)])
    settings = make_settings(width=2, max_length=5, length_penalty=6.0, best_only=True)
    assert run(table, settings).length[:, 0].numpy().tolist() == [0, 5]
    assert run(table[::-1], settings).length[:, 0].numpy().tolist() == [5, 0]


def test_blocked_words_are_never_written() -> None:
    table = make_model(1, 2)
    table[..., A] += 10
    # Four captions are left (B is the only word), so the beam of three stays finite.
    found = run(table, make_settings(3, 3, blocked_ids=(A,)))
    assert not (found.tokens.numpy() == A).any()
    assert np.isfinite(found.log_prob.numpy()).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_narrow_beam_writes_no_ngram_twice(size: int) -> None:
    table = make_model(2, 4, end_bias=-3.0)
    # One word over and over is by far the most probable.
    table[:, :, A, A] += 4
    plain = run(table, make_settings(1, 8))
    assert all(repeats_an_ngram(words_of(plain, image, 0), size) for image in range(4))
    found = run(table, make_settings(1, 8, block_ngrams=size))
    for image in range(4):
        words = words_of(found, image, 0)
        assert not repeats_an_ngram(words, size)
        assert len(words) >= size


def test_attention_follows_its_hypothesis() -> None:
    table = make_model(11, 2, end_bias=-1.0)
    found = run(table, make_settings(width=4))
    for image, rank in itertools.product(range(2), range(4)):
        words = words_of(found, image, rank)
        # The step that writes word t reads word t − 1; `<start>` shows as no cell.
        for time in range(3):
            expected = np.zeros(CELLS)
            if 0 < time < len(words):
                expected[words[time - 1] - END] = 1
            np.testing.assert_array_equal(found.attention[image, rank, time], expected)


@pytest.mark.parametrize("early", [False, True])
def test_a_graph_of_any_batch_finds_the_same(early: bool) -> None:
    settings = make_settings(
        3, 6, length_penalty=0.8, min_length=2, block_ngrams=2, best_only=early
    )

    @tf.function(input_signature=[tf.TensorSpec([None, *[VOCABULARY] * 3], tf.float32)])
    def graph(table: tf.Tensor) -> search.Hypotheses:
        batch = tf.shape(table)[0]
        return search.beam(
            make_step(table), initial_state(batch, settings.width), batch, CELLS, settings
        )

    for batch in (1, 5):
        table = make_model(batch, batch, end_bias=1.0)
        expected, found = run(table, settings), graph(tf.constant(table))
        np.testing.assert_array_equal(expected.tokens, found.tokens)
        for name in OUTPUTS[1:]:
            np.testing.assert_allclose(getattr(expected, name), getattr(found, name), rtol=1e-5)


def test_ngrams_do_not_reach_over_the_first_word() -> None:
    """Even where word 0, which fills the place before the first, is an ordinary word."""
    tokens = tf.constant([[5, 0, 9, 9], [0, 0, 9, 9], [0, 5, 0, 9]])
    found = repeating_words(tokens[:2], tf.constant(2), size=2, pad_id=9)
    assert found.numpy().tolist() == [[9, 9, 9, 9], [9, 0, 9, 9]]
    found = repeating_words(tokens[2:], tf.constant(3), size=2, pad_id=9)
    assert found.numpy().tolist() == [[9, 5, 9, 9]]
