"""A step of training against the way tutorials write it; what feeds it; what a beam costs.

512 units, 10,000 words, 49 cells, 32 images of 5 captions a step, float32 on both sides.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from benchmarks.captions import CAPTIONS_AN_IMAGE, GRID_SHAPE, VOCABULARY_SIZE, write_records
from benchmarks.ratio import compare, rate, report
from benchmarks.tutorial import Tutorial, TutorialStep
from model.config import Config
from model.decoding import search_captions
from model.run import Run
from model.trainer import Trainer

IMAGES = 512
BATCH_SIZE = 32
STEPS = 3
CAPTIONS = BATCH_SIZE * CAPTIONS_AN_IMAGE
STEP_TARGET, INPUT_TARGET, BEAM_TARGET = 2.5, 10.0, 2.2
_FED_BATCHES = 24

Batch = dict[str, tf.Tensor]


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        records = write_records(Path(scratch) / "records", IMAGES)
        trainer = make_trainer(records, Path(scratch) / "model")
        batch = next(iter(trainer._batches(0)))
        step = step_of(trainer, batch)
        _report_step(trainer, batch, step)
        _report_input(trainer, step)
        _report_beam(trainer, batch["grid"])


def make_trainer(records: Path, model_dir: Path, *changes: tuple[str, object]) -> Trainer:
    """A run of the benchmark's sizes; dropout, which the baseline lacks, is off."""
    config = Config().updated(
        [("dropout", 0.0), ("batch_size", BATCH_SIZE), ("validation_split", "none"), *changes]
    )
    return Trainer(Run(records, model_dir, config, tf.distribute.OneDeviceStrategy("/cpu:0"), 1))


def step_of(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    """A step on this batch, compiled."""
    spec = trainer._batches(0).element_spec
    take, number = trainer._step.compiled(spec), itertools.count(1)

    def step() -> object:
        return take(batch, tf.constant(next(number)), tf.constant(0)).loss.numpy()

    step()
    return step


def _several(step: Callable[[], object]) -> float:
    """Captions a second."""
    return rate(lambda: [step() for _ in range(STEPS)], STEPS * CAPTIONS)


def _report_step(trainer: Trainer, batch: Batch, step: Callable[[], object]) -> None:
    config = trainer._run.config
    model = Tutorial(config.decoder, VOCABULARY_SIZE, GRID_SHAPE[0])
    baseline = TutorialStep(model, config.training.clip_norm, config.training.learning_rate)

    def tutorial() -> object:
        return baseline(batch).numpy()

    tutorial()
    ours, theirs = (
        sum(weight.shape.num_elements() for weight in each.trainable_variables)
        for each in (trainer.captioner, model)
    )
    if ours != theirs:
        raise AssertionError(f"{ours} weights here, {theirs} in the baseline")
    ratio, sides = compare(lambda: _several(step), lambda: _several(tutorial))
    report("step/tutorial", ratio, f"≥ {STEP_TARGET}", f"captions/s {sides}")


def _report_input(trainer: Trainer, step: Callable[[], object]) -> None:
    def fed() -> float:
        batches = iter(trainer._batches(0))
        next(batches)
        return rate(lambda: [next(batches) for _ in range(_FED_BATCHES)], _FED_BATCHES * CAPTIONS)

    ratio, sides = compare(fed, lambda: _several(step))
    report("input/step", ratio, f"≥ {INPUT_TARGET}", f"captions/s {sides}")


def _report_beam(trainer: Trainer, grid: tf.Tensor) -> None:
    def search(width: int) -> Callable[[], object]:
        # Untrained, no caption ends: both write all words.
        config = Config().updated([("beam_width", width)]).search
        found = tf.function(
            lambda grid: search_captions(trainer.captioner, trainer._vocabulary, config, grid)
        )
        found(grid)
        return lambda: found(grid).tokens.numpy()

    greedy, beam = search(1), search(3)
    ratio, sides = compare(lambda: rate(greedy, BATCH_SIZE), lambda: rate(beam, BATCH_SIZE))
    report("greedy/beam 3", ratio, f"≤ {BEAM_TARGET}", f"images/s {sides}")
