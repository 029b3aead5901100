"""The loss: masked by the label, summed, smoothed as published."""

import numpy as np
import pytest
import tensorflow as tf

from model.losses import masked_cross_entropy

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
