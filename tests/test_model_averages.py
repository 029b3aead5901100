"""Averages of weights: NumPy's, and the model's own weights back after use."""

import keras
import numpy as np
import tensorflow as tf

from model.averages import WeightAverages


def test_averages_are_numpy_s_and_only_lent() -> None:
    weight = keras.Variable(np.array([1.0, -2.0], np.float32))
    averages = WeightAverages([weight], 0.5)
    expected, values = np.array([1.0, -2.0]), np.random.default_rng(0).normal(size=(30, 2))
    for step, value in enumerate(values):
        weight.assign(value)
        averages.update(tf.constant(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with averages.applied():
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(weight.numpy(), values[-1], rtol=1e-6)
    # Lending leaves the averages as they were.
    with averages.applied():
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5)


def test_without_a_decay_the_weights_are_their_own_average() -> None:
    weight = keras.Variable(np.array([1.0], np.float32))
    averages = WeightAverages([weight], 0.0)
    weight.assign([3.0])
    averages.update(tf.constant(0))
    with averages.applied():
        assert weight.numpy() == [3.0]
    assert not averages.variables
