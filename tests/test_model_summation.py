"""What a step adds does not depend on which thread was first."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.summation import fork
from model.trainer import Trainer
from tests.trainer_fixtures import EVERYTHING, check_sums, make_run

SELF_CRITICAL = (("stage", "self_critical"), ("l2", 1e-3), ("tie_embeddings", True))


OTHERWISE = (*EVERYTHING, ("normalise_cells", True), ("tie_embeddings", False))


@pytest.mark.parametrize(
    "settings",
    [
        EVERYTHING,
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (SELF_CRITICAL, OTHERWISE, (*EVERYTHING, ("precision", "bfloat16")))
        ),
    ],
)
def test_no_more_than_two_terms_are_added_at_once(
    settings: tuple[tuple[str, object], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.trainer.check_first", lambda _: None)
    run = make_run(tmp_path, "model", 1, *settings, ("num_layers", 4))
    check_sums(Trainer(run))


def test_a_fork_has_the_gradient_of_its_uses() -> None:
    value = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(value)
        one, two, three = fork(value, 3)
        total = tf.reduce_sum(one * 2.0 + two**2 - three)
    np.testing.assert_array_equal(one, value)
    np.testing.assert_array_equal(tape.gradient(total, value), [3.0, 5.0])
