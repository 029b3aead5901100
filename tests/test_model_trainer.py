"""Training: learns, minimises what it says, keeps the best, stops where nothing is left."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.checkpoints import load_trained
from model.dataset import Stream, batch_keys
from model.errors import CheckFailed, InvalidInput
from model.evaluation import evaluate
from model.losses import doubly_stochastic_penalty, l2_penalty, masked_cross_entropy
from model.objectives import Batch
from model.run import Run
from model.trainer import Trainer
from model.training_step import replica_seed
from tests import tiny
from tests.trainer_fixtures import (
    checkpoint_steps,
    history,
    make_run,
    silent,
    validate_as,
    weights,
)

NUMBERS = (
    *("loss", "cross_entropy", "gradient_norm", "learning_rate"),
    *("captions_per_s", "input_wait"),
)


def event_tags(run: Run) -> set[str]:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(run.model_dir / "events")).Reload()
    return set(events.Tags()["tensors"])


@pytest.mark.slow
def test_memorises_and_keeps_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 120, ("dropout", 0.0), ("validation_steps", 60))
    Trainer(run).fit(silent)
    report = evaluate(run.records, [run.model_dir], "train", None)
    assert report["scores"]["exact_match"] == 1.0
    rows = history(run)
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[1]["loss"] < rows[0]["loss"]
    pictures = {f"captions/image-{number}.jpg" for number in range(4)}
    scalars = {f"training/{name}" for name in NUMBERS} | {"validation/cider"}
    assert event_tags(run) == scalars | pictures
    best = max(rows, key=lambda row: row["val_cider"])
    assert load_trained(run.model_dir).step == best["step"]


STEP = 5


def loss_with(tmp_path: Path, *changes: tuple[str, object]) -> tuple[float, Trainer, Batch]:
    """The loss of a step before any is taken, the run, and the batch."""
    run = make_run(tmp_path, "-".join(str(value) for _, value in changes), 1, *changes)
    trainer = Trainer(run)
    batch = next(iter(trainer._batches(0)))
    taken, _ = trainer._strategy.run(
        trainer._step._on_replica, args=(batch, tf.constant(STEP), tf.constant(0))
    )
    assert float(taken.captions) == len(batch["labels"])
    assert not taken.stopping
    return float(taken.loss), trainer, batch


def entropy(trainer: Trainer, batch: Batch, smoothing: float = 0.0, **sampling: object) -> float:
    seed = tf.constant([trainer._run.config.training.seed, STEP])
    read = (batch["grid"], batch["inputs"], batch["image_index"])
    logits, _ = trainer.captioner(*read, seed=seed, **sampling)
    total, words = masked_cross_entropy(logits, batch["labels"], 0, smoothing)
    return float(total / words)


def test_each_part_of_the_loss_has_its_weight(tmp_path: Path) -> None:
    loss, trainer, batch = loss_with(tmp_path)
    plain = entropy(trainer, batch)
    assert loss == pytest.approx(plain, rel=1e-6)
    loss, *_ = loss_with(tmp_path, ("label_smoothing", 0.3))
    assert loss == pytest.approx(entropy(trainer, batch, 0.3), rel=1e-6)
    loss, *_ = loss_with(tmp_path, ("l2", 0.01))
    penalty, _ = l2_penalty(trainer.captioner.trainable_variables)
    assert loss - plain == pytest.approx(0.01 * float(penalty), rel=1e-3)
    loss, *_ = loss_with(tmp_path, ("attention_penalty", 2.0))
    seed = tf.constant([0, STEP])
    _, attention = trainer.captioner(
        batch["grid"], batch["inputs"], batch["image_index"], seed=seed
    )
    total, captions = doubly_stochastic_penalty(attention, batch["labels"], 0)
    assert loss - plain == pytest.approx(float(2 * total / captions), rel=1e-3)
    loss, *_ = loss_with(tmp_path, ("scheduled_sampling", 0.8), ("scheduled_sampling_epochs", 4))
    # Two steps are an epoch of seven images in fours.
    share = tf.constant(0.8 * STEP / 8)
    assert loss == pytest.approx(entropy(trainer, batch, sampling_share=share), rel=1e-6)
    assert loss != pytest.approx(plain, rel=1e-4)


def test_l2_pulls_matrices_to_0(tmp_path: Path) -> None:
    """Tied, so that one of them is used twice; at a loss scale."""
    found = {}
    for l2 in (0.0, 0.5):
        run = make_run(tmp_path, f"l2-{l2}", 1, ("l2", l2), ("tie_embeddings", True))
        trainer = Trainer(run)
        batch = next(iter(trainer._batches(0)))
        arguments = (batch, tf.constant(STEP), tf.constant(0), tf.constant(8.0))
        found[l2] = trainer._strategy.run(trainer._step._gradients, args=arguments).scaled
    for weight, plain, pulled in zip(
        trainer.captioner.trainable_variables, found[0.0], found[0.5], strict=True
    ):
        expected = 8 * 0.5 * weight.numpy() * (len(weight.shape) > 1)
        np.testing.assert_allclose(pulled - plain, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_by_value_then_by_norm(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 1, ("clip_value", 0.5), ("clip_norm", 0.6))
    step = Trainer(run)._step
    gradients = [tf.constant([3.0, -4.0]), tf.constant([0.1])]
    clipped, norm = step._clipped(gradients)
    assert float(norm) == pytest.approx(np.sqrt(25.01))
    scale = 0.6 / np.sqrt(0.5**2 + 0.5**2 + 0.1**2)
    np.testing.assert_allclose(clipped[0], np.array([0.5, -0.5]) * scale, rtol=1e-5)
    np.testing.assert_allclose(clipped[1], [0.1 * scale], rtol=1e-5)


@pytest.mark.slow
def test_the_best_are_the_averages_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    plain = Trainer(make_run(tmp_path, "plain", 8, ("validation_split", "none")))
    plain.fit(silent)
    changes = (("validation_split", "none"), ("ema_decay", 0.9))
    averaged = Trainer(make_run(tmp_path, "averaged", 8, *changes))
    averaged.fit(silent)
    for one, other in zip(weights(plain), weights(averaged), strict=True):
        np.testing.assert_array_equal(one, other)
    with averaged.averages.applied():
        expected = weights(averaged)
    best = load_trained(tmp_path / "averaged").captioner.variables
    for one, other in zip(expected, best, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    assert np.abs(expected[-1] - weights(averaged)[-1]).max() > 1e-6


def test_a_plateau_lowers_the_rate_of_the_steps_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 3.0, 2.0, 2.5, 4.0)
    changes = (("schedule", "plateau"), ("patience", 1), ("decay_rate", 0.5), ("warmup_steps", 0))
    run = make_run(tmp_path, "model", 8, *changes, ("validation_steps", 2))
    Trainer(run).fit(silent)
    rate = run.config.training.learning_rate
    found = [row["learning_rate"] for row in history(run)]
    assert found == pytest.approx([rate, rate, rate / 2, rate / 4])


def test_best_is_the_highest_score_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 1.0, 3.0, 2.0)
    run = make_run(tmp_path, "model", 6, ("validation_steps", 2))
    Trainer(run).fit(silent)
    assert load_trained(run.model_dir).step == 4


@pytest.mark.slow
def test_validation_scores_are_those_of_free_running_captions(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 40, ("validation_steps", 40), ("dropout", 0.0))
    Trainer(run).fit(silent)
    (row,) = (run.model_dir / "history.jsonl").read_text().splitlines()
    report = evaluate(run.records, [run.model_dir], "val", None)
    assert json.loads(row)["val_cider"] == pytest.approx(report["scores"]["cider"], rel=1e-6)
    assert json.loads(row)["val_cider"] > 0


@pytest.mark.slow
def test_validation_leaves_the_weights_alone(tmp_path: Path) -> None:
    often = Trainer(make_run(tmp_path, "often", 6, ("validation_steps", 1)))
    often.fit(silent)
    seldom = Trainer(make_run(tmp_path, "seldom", 6, ("validation_steps", 6)))
    seldom.fit(silent)
    for one, other in zip(weights(often), weights(seldom), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_validation_split_the_last_is_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 4, ("validation_split", "dev"), ("validation_steps", 2))
    Trainer(run).fit(silent)
    assert load_trained(run.model_dir).step == 4


def poison(trainer: Trainer) -> bool:
    trainer.captioner.set_grid_statistics(*[np.full(tiny.GRID_SHAPE[1], np.nan)] * 2)
    return True


def test_nan_loss_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "model", 4)
    trainer = Trainer(run)
    trainer.fit(silent)
    longer = Trainer(make_run(tmp_path, "model", 12))
    restore = longer._checkpoints.restore
    monkeypatch.setattr(longer._checkpoints, "restore", lambda log: restore(log) and poison(longer))
    keys = ", ".join(batch_keys(longer._train_split, Stream(0, 4, 4, first_step=4)))
    with pytest.raises(CheckFailed, match=f"the loss is nan at step 5, .* batch was {keys}; the"):
        longer.fit(silent)
    again = Trainer(run)
    again.fit(silent)
    assert all(np.isfinite(weight).all() for weight in weights(again))


def test_penalties_are_no_reason_to_stop(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2, ("l2", 100.0), ("learning_rate", 1e-6))
    Trainer(run).fit(silent)
    assert history(run)[-1]["loss"] > 1000


def test_a_gradient_that_is_no_number_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is that before it: its weights are already spoiled."""
    run = make_run(tmp_path, "model", 3)
    trainer = Trainer(run)
    clipped = trainer._step._clipped

    def spoiled(gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        return clipped([gradient * np.nan for gradient in gradients])

    monkeypatch.setattr(trainer._step, "_clipped", spoiled)
    with pytest.raises(CheckFailed, match=r"at step 1, .* and its gradient's norm nan"):
        trainer.fit(silent)
    assert checkpoint_steps(run.model_dir) == []


def test_a_plateau_needs_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2, ("schedule", "plateau"), ("validation_split", "dev"))
    with pytest.raises(InvalidInput, match="schedule plateau without a split 'dev', expected one"):
        Trainer(run)


def test_replicas_seeds_and_steps_draw_apart() -> None:
    drawn = {
        tuple(replica_seed(seed, tf.constant(replica), 4, tf.constant(step)).numpy())
        for seed in range(3)
        for replica in range(4)
        for step in range(5)
    }
    assert len(drawn) == 3 * 4 * 5


def test_a_loss_far_above_ignorance_stops_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 30, ("learning_rate", 10.0), ("clip_norm", 0.0))
    words = len(tiny.make_vocabulary())
    with pytest.raises(CheckFailed, match=f"expected at most {10 * np.log(words):.3g}, and its gr"):
        Trainer(run).fit(silent)
