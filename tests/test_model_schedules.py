"""Learning rates and the share of sampled words, step by step."""

import math
from typing import Any

import pytest
import tensorflow as tf

from model.schedules import Plateau, Schedule, sampling_share
from model.training_config import TrainingConfig

RATE, TOTAL, EPOCH = 0.5, 100, 10


def rates(*steps: int, **settings: Any) -> list[float]:
    config = TrainingConfig(learning_rate=RATE, **settings)
    schedule = Schedule(config, TOTAL, EPOCH)
    return [float(schedule(step)) for step in steps]


def test_warm_up_is_linear_and_ends_at_the_rate() -> None:
    found = rates(0, 1, 5, 10, 11, 99, schedule="constant", warmup_steps=10)
    assert found == pytest.approx([0.0, 0.05, 0.25, 0.5, 0.5, 0.5])
    assert rates(0, schedule="constant", warmup_steps=0) == [RATE]


def test_cosine_falls_to_a_hundredth_at_the_last_step() -> None:
    found = rates(20, 60, TOTAL - 1, 500, schedule="cosine", warmup_steps=20)
    middle = RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * 40 / 79)) / 2)
    assert found == pytest.approx([RATE, middle, RATE / 100, RATE / 100])


def test_steps_count_epochs_from_the_end_of_the_warm_up() -> None:
    settings = {"schedule": "step", "warmup_steps": 4, "decay_rate": 0.8, "decay_epochs": 3}
    found = rates(4, 33, 34, 63, 64, 94, **settings)
    assert found == pytest.approx([RATE, RATE, 0.4, 0.4, 0.32, 0.256])


def test_a_run_shorter_than_its_warm_up_reaches_its_rate() -> None:
    config = TrainingConfig(learning_rate=RATE, schedule="constant", warmup_steps=200)
    assert float(Schedule(config, 3, EPOCH)(2)) == pytest.approx(RATE)


def test_plateau_waits_for_its_patience_and_forgets_it_after_a_better_score() -> None:
    config = TrainingConfig(schedule="plateau", patience=2, decay_rate=0.5, warmup_steps=0)
    plateau = Plateau(config)
    schedule = Schedule(config, TOTAL, EPOCH, plateau.scale)
    scales = []
    for better in (True, False, True, False, False, False, False, True):
        plateau.validated(better)
        scales.append(float(schedule(50)) / config.learning_rate)
    assert scales == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])


def test_other_schedules_do_not_look_at_scores() -> None:
    plateau = Plateau(TrainingConfig(schedule="cosine", patience=1))
    plateau.validated(False)
    assert (float(plateau.scale), int(plateau.stale)) == (1.0, 0)


def test_share_of_sampled_words_grows_over_its_epochs() -> None:
    config = TrainingConfig(scheduled_sampling=0.25, scheduled_sampling_epochs=5)
    found = [float(sampling_share(config, EPOCH, tf.constant(step))) for step in (0, 10, 50, 99)]
    assert found == pytest.approx([0.0, 0.05, 0.25, 0.25])
    at_once = TrainingConfig(scheduled_sampling=0.25)
    assert float(sampling_share(at_once, EPOCH, tf.constant(0))) == pytest.approx(0.25)
