"""Beam search against the enumeration of every sequence of a tiny vocabulary."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from model import search
from model.search import SearchSettings

PAD, START, END, A, B = range(5)
VOCABULARY, CELLS = 5, 3


def make_model(seed: int, batch: int, end_bias: float = 0.0) -> np.ndarray:
    """Logits of the next word, given image, the word before the last and the last: [N, V, V, V]."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (batch, VOCABULARY, VOCABULARY, VOCABULARY))
    logits[..., END] += end_bias
    return logits.astype(np.float32)


def run(table: np.ndarray, settings: SearchSettings) -> search.Hypotheses:
    """Search with a step whose state is (image, word before the last): a second-order model."""
    batch = len(table)
    logits = tf.constant(table)

    def step(last: tf.Tensor, state: tuple) -> tuple:
        image, before = state
        chosen = tf.gather_nd(logits, tf.stack([image, before, last], axis=1))
        # The attention names the word that is read, so its history can be checked.
        attention = tf.one_hot(last - END, CELLS)
        return chosen, (image, last), attention

    images = tf.repeat(tf.range(batch), settings.width)
    start = (images, tf.fill([batch * settings.width], START))
    return search.beam(step, start, batch, CELLS, settings)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def enumerate_all(table: np.ndarray, max_length: int) -> list[tuple[float, tuple[int, ...]]]:
    """(log-probability, words) of every caption of one image, best first."""
    found = []
    for length in range(max_length + 1):
        for words in itertools.product((A, B), repeat=length):
            total, before, last = 0.0, START, START
            for word in (*words, END):
                total += log_softmax(table[before, last])[word]
                before, last = last, word
            found.append((float(total), words))
    return sorted(found, reverse=True)


def settings(width: int, max_length: int = 3) -> SearchSettings:
    return SearchSettings(width, max_length, START, END, PAD)


def words_of(found: search.Hypotheses, image: int, rank: int) -> tuple[int, ...]:
    length = int(found.length[image, rank])
    return tuple(found.tokens[image, rank, :length].numpy().tolist())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("end_bias", [-2.0, 0.0, 2.0])
def test_wide_beam_finds_every_caption_in_order(seed: int, end_bias: float) -> None:
    table = make_model(seed, 2, end_bias)
    # 1 + 2 + 4 + 8 captions of at most three words: wide enough to lose none.
    found = run(table, settings(width=15))
    for image in range(2):
        expected = enumerate_all(table[image], 3)
        for rank, (log_prob, words) in enumerate(expected):
            assert words_of(found, image, rank) == words
            assert float(found.log_prob[image, rank]) == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_narrow_beam_scores_are_those_of_its_words(seed: int) -> None:
    table = make_model(seed, 3)
    found = run(table, settings(width=2))
    for image, rank in itertools.product(range(3), range(2)):
        truth = {words: log_prob for log_prob, words in enumerate_all(table[image], 3)}
        assert float(found.log_prob[image, rank]) == pytest.approx(
            truth[words_of(found, image, rank)], abs=1e-4
        )
    assert np.all(np.diff(found.log_prob.numpy(), axis=1) <= 0)
    assert words_of(found, 0, 0) != words_of(found, 0, 1)


def test_greedy_takes_the_best_word_each_time() -> None:
    table = make_model(3, 4, end_bias=-1.0)
    found = search.greedy(
        lambda last, state: (
            tf.gather_nd(tf.constant(table), tf.stack([state[0], state[1], last], axis=1)),
            (state[0], last),
            tf.zeros([4, CELLS]),
        ),
        (tf.range(4), tf.fill([4], START)),
        4,
        CELLS,
        settings(width=7),
    )
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
    found = run(table, settings(width=3, max_length=4))
    assert found.length.numpy().tolist() == [[4, 4, 4], [4, 4, 4]]
    assert np.isfinite(found.log_prob.numpy()).all()
    assert not np.isin(found.tokens.numpy(), [START, END]).any()


def test_a_caption_does_not_depend_on_its_batch_mates() -> None:
    table = make_model(5, 6)
    together = run(table, settings(width=3))
    for image in range(6):
        alone = run(table[image : image + 1], settings(width=3))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[image])
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[image], rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_stopping_at_the_best_changes_nothing_of_it(seed: int) -> None:
    table = make_model(seed, 4, end_bias=1.0)
    full = run(table, settings(width=4, max_length=6))
    early = run(table, SearchSettings(4, 6, START, END, PAD, best_only=True))
    for name in ("tokens", "log_prob", "length", "attention"):
        np.testing.assert_array_equal(getattr(full, name)[:, 0], getattr(early, name)[:, 0])


def test_blocked_words_are_never_written() -> None:
    table = make_model(1, 2)
    table[..., A] += 10
    blocked = SearchSettings(3, 3, START, END, PAD, blocked_ids=(A,))
    # Four captions are left (B is the only word), so the beam of three stays finite.
    found = run(table, blocked)
    assert not (found.tokens.numpy() == A).any()
    assert np.isfinite(found.log_prob.numpy()).all()


def test_attention_follows_its_hypothesis() -> None:
    table = make_model(11, 2, end_bias=-1.0)
    found = run(table, settings(width=4))
    for image, rank in itertools.product(range(2), range(4)):
        words = words_of(found, image, rank)
        # The step that writes word t reads word t − 1; `<start>` shows as no cell.
        for time in range(3):
            expected = np.zeros(CELLS)
            if 0 < time < len(words):
                expected[words[time - 1] - END] = 1
            np.testing.assert_array_equal(found.attention[image, rank, time], expected)
