"""Two parts of a model, each with its rate."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from model.split_optimizer import SplitOptimizer

RATES = (0.1, 0.001)
# Far apart: Adam's steps must not follow them.
GRADIENTS = (1e-3, 1e3, -5.0)


def make() -> tuple[SplitOptimizer, list[keras.Variable]]:
    variables = [keras.Variable(np.ones(2, np.float32)) for _ in GRADIENTS]
    one, other = (keras.optimizers.Adam(rate) for rate in RATES)
    return SplitOptimizer((one, variables[:1]), (other, variables[1:])), variables


def test_each_part_steps_at_its_own_rate_whatever_the_gradient() -> None:
    optimizer, variables = make()
    optimizer.apply([tf.fill([2], gradient) for gradient in GRADIENTS], variables)
    for variable, expected in zip(variables, (0.9, 0.999, 1.001), strict=True):
        # Adam's epsilon is a little of a gradient of 1e-3.
        np.testing.assert_allclose(variable.numpy() - 1.0, expected - 1.0, rtol=5e-3)


def test_it_counts_its_steps() -> None:
    optimizer, variables = make()
    for taken in (1, 2):
        optimizer.apply([tf.ones([2]) for _ in GRADIENTS], variables)
        assert int(optimizer.iterations) == taken


def test_its_state_is_kept_in_checkpoints(tmp_path: Path) -> None:
    optimizer, variables = make()
    optimizer.apply([tf.fill([2], gradient) for gradient in GRADIENTS], variables)
    # Two moments a variable, a step and a rate an optimiser.
    assert len(optimizer.variables) == 2 * len(GRADIENTS) + 2 * len(RATES)
    path = tf.train.Checkpoint(optimizer=optimizer).save(str(tmp_path / "kept"))
    other, _ = make()
    assert any(
        not np.array_equal(one.numpy(), another.numpy())
        for one, another in zip(optimizer.variables, other.variables, strict=True)
    )
    tf.train.Checkpoint(optimizer=other).restore(path).assert_existing_objects_matched()
    for one, another in zip(optimizer.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), another.numpy())
