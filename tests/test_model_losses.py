"""The loss: masked by the label, summed, smoothed as published."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.losses import doubly_stochastic_penalty, l2_penalty, masked_cross_entropy

PAD = 0
LOGITS = np.random.default_rng(0).normal(0, 2, (2, 4, 6)).astype(np.float32)
LABELS = np.array([[3, 4, 2, 0], [5, 2, 0, 0]], np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sum_over_words_alone(smoothing: float) -> None:
    expected = 0.0
    for row, labels in enumerate(LABELS):
        for time, label in enumerate(labels):
            if label != PAD:
                target = np.full(6, smoothing / 6)
                target[label] += 1 - smoothing
                expected -= target @ log_softmax(LOGITS)[row, time]
    total, count = masked_cross_entropy(tf.constant(LOGITS), tf.constant(LABELS), PAD, smoothing)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == 5


def test_padding_has_no_gradient() -> None:
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        total, _ = masked_cross_entropy(logits, tf.constant(LABELS), PAD)
    gradient = tape.gradient(total, logits).numpy()
    assert (gradient[LABELS == PAD] == 0).all()
    # `<end>` is a word: it is learnt although nothing follows it.
    assert (np.abs(gradient[LABELS == 2]).sum(axis=-1) > 0).all()


WEIGHTS = np.random.default_rng(1).dirichlet(np.ones(5), (2, 4)).astype(np.float32)


def test_attention_penalty_is_xu_s_with_the_target_that_can_be_reached() -> None:
    expected = 0.0
    for row, words in enumerate((3, 2)):
        looked = WEIGHTS[row, :words].astype(np.float64).sum(axis=0)
        expected += float(((looked - words / 5) ** 2).sum())
    total, captions = doubly_stochastic_penalty(tf.constant(WEIGHTS), tf.constant(LABELS), PAD)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(captions) == 2


def test_attention_that_is_even_has_no_penalty() -> None:
    """Whatever the caption's length, and wherever its padding looks."""
    even = np.full((2, 4, 5), 0.2, np.float32)
    even[LABELS == PAD] = [1, 0, 0, 0, 0]
    total, _ = doubly_stochastic_penalty(tf.constant(even), tf.constant(LABELS), PAD)
    assert float(total) == pytest.approx(0.0, abs=1e-9)


def test_l2_counts_matrices_alone() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    layer.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([100.0, 100.0])])
    penalty, (of_matrix, of_bias) = l2_penalty(layer.trainable_variables)
    assert float(penalty) == pytest.approx(15.0)
    np.testing.assert_array_equal(of_matrix, [[1.0, 2.0], [3.0, 4.0]])
    assert of_bias is None
