"""Training: learns, resumes to the bit, gives N replicas the weights of one."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.checkpoints import Checkpoints, load_trained
from model.config import Config
from model.dataset import Stream, batch_keys
from model.errors import CheckFailed, InvalidInput, RecordsMismatch
from model.evaluation import evaluate
from model.losses import doubly_stochastic_penalty, l2_penalty, masked_cross_entropy
from model.meter import Meter
from model.preprocessing import KEEP, SQUASH, choices, fingerprint
from model.records import Manifest
from model.stopping import on_sigterm
from model.strategies import is_chief, make_strategy
from model.trainer import Run, Trainer
from model.training_step import Batch
from model.vocabulary import Vocabulary
from tests import tiny

SETTINGS = (
    ("embedding_size", 12),
    ("hidden_size", 16),
    ("attention_size", 12),
    ("dropout", 0.2),
    ("batch_size", 4),
    ("learning_rate", 1e-2),
    ("warmup_steps", 2),
    ("shuffle_buffer", 4),
    ("max_length", 12),
    ("schedule", "constant"),
    ("checkpoint_steps", 2),
    ("validation_steps", 4),
)


def make_run(tmp_path: Path, name: str, steps: int, *changes: tuple[str, object]) -> Run:
    records = tmp_path / "records"
    if not records.exists():
        tiny.make_records(records)
    config = Config().updated([*SETTINGS, *changes])
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return Run(records, tmp_path / name, config, strategy, steps)


def silent(_: str) -> None:
    """Takes the log lines."""


def weights(trainer: Trainer) -> list[np.ndarray]:
    return [variable.numpy() for variable in trainer.captioner.variables]


def test_memorises_and_keeps_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 120, ("dropout", 0.0), ("validation_steps", 60))
    Trainer(run).fit(silent)
    report = evaluate(run.records, [run.model_dir], "train", None)
    assert report["scores"]["exact_match"] == 1.0
    rows = history(run)
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[1]["loss"] < rows[0]["loss"]
    best = max(rows, key=lambda row: row["val_cider"])
    assert load_trained(run.model_dir).step == best["step"]


# Everything that draws, averages or remembers.
EVERYTHING = (
    ("label_smoothing", 0.1),
    ("scheduled_sampling", 0.5),
    ("scheduled_sampling_epochs", 2),
    ("attention_penalty", 1.0),
    ("l2", 1e-3),
    ("ema_decay", 0.9),
    ("tie_embeddings", True),
    ("clip_value", 0.05),
    ("schedule", "plateau"),
    ("patience", 1),
    # Also the steps at which the test of resuming stops: an end is validated.
    ("validation_steps", 3),
)
# Numbers that a clock gives.
SPEEDS = ("captions_per_s", "input_wait")


def kept(trainer: Trainer) -> list[np.ndarray]:
    """All that a checkpoint must hold."""
    plateau = trainer.progress.plateau
    variables = [*trainer.optimizer.variables, *trainer.averages.variables, *plateau.variables]
    values = [variable.numpy() for variable in (*variables, trainer.progress.best_score)]
    return [*weights(trainer), *values]


def history(run: Run) -> list[dict[str, Any]]:
    rows = map(json.loads, (run.model_dir / "history.jsonl").read_text().splitlines())
    return [{name: row[name] for name in row if name not in SPEEDS} for row in rows]


@pytest.mark.parametrize(
    "changes",
    [(), pytest.param(EVERYTHING, marks=pytest.mark.slow)],
    ids=["plain", "everything"],
)
def test_resumed_run_equals_the_undisturbed_one(
    tmp_path: Path, changes: tuple[tuple[str, object], ...]
) -> None:
    whole = Trainer(make_run(tmp_path, "whole", 9, *changes))
    whole.fit(silent)
    # Stops inside the second epoch, between validations.
    Trainer(make_run(tmp_path, "parts", 3, *changes)).fit(silent)
    middle = Trainer(make_run(tmp_path, "parts", 6, *changes))
    middle.fit(silent)
    run = make_run(tmp_path, "parts", 9, *changes)
    last = Trainer(run)
    last.fit(silent)
    assert len(kept(whole)) == len(kept(last)) > 50
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(middle.progress.best_score) <= float(last.progress.best_score)


STEP = 5


def loss_with(tmp_path: Path, *changes: tuple[str, object]) -> tuple[float, Trainer, Batch]:
    """The loss of a step before any is taken, the run, and the batch."""
    run = make_run(tmp_path, "-".join(str(value) for _, value in changes), 1, *changes)
    trainer = Trainer(run)
    batch = next(iter(trainer._batches(0)))
    loss, captions, stopping = trainer._strategy.run(
        trainer._step._loss, args=(batch, tf.constant(STEP), tf.constant(0))
    )
    assert float(captions) == len(batch["labels"])
    assert not stopping
    return float(loss), trainer, batch


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
    expected = 0.01 * float(l2_penalty(trainer.captioner.trainable_variables))
    assert loss - plain == pytest.approx(expected, rel=1e-3)
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


def test_gradients_are_clipped_by_value_then_by_norm(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 1, ("clip_value", 0.5), ("clip_norm", 0.6))
    step = Trainer(run)._step
    gradients = [tf.constant([3.0, -4.0]), tf.constant([0.1])]
    clipped, norm = step._clipped(gradients)
    assert float(norm) == pytest.approx(np.sqrt(25.01))
    scale = 0.6 / np.sqrt(0.5**2 + 0.5**2 + 0.1**2)
    np.testing.assert_allclose(clipped[0], np.array([0.5, -0.5]) * scale, rtol=1e-5)
    np.testing.assert_allclose(clipped[1], [0.1 * scale], rtol=1e-5)


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
    changes = (("schedule", "plateau"), ("patience", 1), ("decay_rate", 0.5))
    run = make_run(tmp_path, "model", 8, *changes, ("validation_steps", 2))
    Trainer(run).fit(silent)
    rate = run.config.training.learning_rate
    found = [row["learning_rate"] for row in history(run)]
    assert found == pytest.approx([rate, rate, rate / 2, rate / 4])


def terminate_after_saving(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    save = Checkpoints.save

    def saved(self: Checkpoints, number: int) -> None:
        save(self, number)
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", saved)


def test_sigterm_saves_where_it_is_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer(make_run(tmp_path, "whole", 9, ("checkpoint_steps", 4)))
    whole.fit(silent)
    run = make_run(tmp_path, "parts", 9, ("checkpoint_steps", 4))
    before = signal.getsignal(signal.SIGTERM)
    terminate_after_saving(monkeypatch, 4)
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    # Asked at step 4, told to every process with step 5, saved with the one after.
    assert lines[-1] == "stopped at step 6 of 9; the same command goes on"
    assert signal.getsignal(signal.SIGTERM) is before
    last = Trainer(run)
    last.fit(lines.append)
    assert "resuming at step 6 of 9" in lines
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_sigterm_ends_the_process_as_ever() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        with on_sigterm() as request:
            assert not request
            signal.raise_signal(signal.SIGTERM)
            assert request
            assert not asked
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def validate_as(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let validations give these scores, one after the other."""
    given = iter(scores)
    monkeypatch.setattr("model.validation.metrics.score", lambda *_: {"cider": next(given)})


def test_best_is_the_highest_score_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 1.0, 3.0, 2.0)
    run = make_run(tmp_path, "model", 6, ("validation_steps", 2))
    Trainer(run).fit(silent)
    assert load_trained(run.model_dir).step == 4


def test_resumed_run_remembers_the_best_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 3.0, 2.0, 4.0)
    changes = ("validation_steps", 2)
    Trainer(make_run(tmp_path, "model", 2, changes)).fit(silent)
    Trainer(make_run(tmp_path, "model", 4, changes)).fit(silent)
    assert load_trained(tmp_path / "model").step == 2
    Trainer(make_run(tmp_path, "model", 6, changes)).fit(silent)
    assert load_trained(tmp_path / "model").step == 6


def test_validation_scores_are_those_of_free_running_captions(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 40, ("validation_steps", 40), ("dropout", 0.0))
    Trainer(run).fit(silent)
    (row,) = (run.model_dir / "history.jsonl").read_text().splitlines()
    report = evaluate(run.records, [run.model_dir], "val", None)
    assert json.loads(row)["val_cider"] == pytest.approx(report["scores"]["cider"], rel=1e-6)
    assert json.loads(row)["val_cider"] > 0


def test_interrupted_history_has_each_validation_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 8)
    Trainer(run).fit(silent)
    history = run.model_dir / "history.jsonl"
    before = history.read_text()
    # As a kill after the validation of step 8 and before its checkpoint leaves it.
    with history.open("a") as file:
        file.write('{"step": 12, "loss": 1.0}\n{"step": 16, "lo')
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    assert history.read_text() == before
    assert lines == ["resuming at step 8 of 8", "nothing to do: step 8 of 8 is taken"]


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


def test_a_loss_far_above_ignorance_stops_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 30, ("learning_rate", 10.0), ("clip_norm", 0.0))
    words = len(tiny.make_vocabulary())
    with pytest.raises(CheckFailed, match=f"expected at most {10 * np.log(words):.3g}; the batch"):
        Trainer(run).fit(silent)


def test_other_settings_on_the_same_model_dir_are_refused(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, "model", 2)).fit(silent)
    with pytest.raises(InvalidInput, match=r"begun with decoder.dropout 0.2, now 0.5"):
        Trainer(make_run(tmp_path, "model", 2, ("dropout", 0.5)))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_grids_of_another_encoder_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.records / "manifest.json", '"digest": "00000000', '"digest": "11110000')
    with pytest.raises(RecordsMismatch, match="encoder random:0 11110000, the model expects 0000"):
        Trainer(run)


def test_the_same_encoder_from_another_path_is_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.records / "manifest.json", '"weights": "random:0"', '"weights": "/mnt/w.h5"')
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    assert lines[0] == "resuming at step 2 of 2"


def test_grids_of_another_preprocessing_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    wanted = r"preprocessing version is 1 there, 3 in this version of captionbeam; preprocess again"
    rewrite(run.model_dir / "manifest.json", '"version": 3', '"version": 1')
    with pytest.raises(RecordsMismatch, match=wanted):
        load_trained(run.model_dir)
    rewrite(run.records / "manifest.json", '"version": 3', '"version": 1')
    with pytest.raises(RecordsMismatch, match=wanted):
        Trainer(make_run(tmp_path, "fresh", 2))


def test_choices_that_do_not_give_the_fingerprint_were_edited(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    rewrite(run.records / "manifest.json", '"aspect": "squash"', '"aspect": "keep"')
    with pytest.raises(
        RecordsMismatch, match=r"fingerprint \w{8}, its choices give \w{8}; the man"
    ):
        Trainer(run)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ((64, 2, KEEP), "aspect keep, the model expects squash"),
        ((96, 2, SQUASH), "image size 96, the model expects 64"),
        ((64, 1, SQUASH), "grid size 1, the model expects 2"),
    ],
)
def test_going_on_with_other_grids_names_the_difference(
    tmp_path: Path, settings: tuple[int, int, str], difference: str
) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    other = choices(*settings)
    manifest = replace(
        Manifest.load(run.records), preprocessing=other, fingerprint=fingerprint(other)
    )
    (run.records / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(RecordsMismatch) as caught:
        Trainer(run)
    assert str(caught.value) == (
        f"{run.records}: {difference}; preprocess with the model's settings"
    )


def test_going_on_without_the_flip_copies_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    manifest = replace(Manifest.load(run.records), flip_copies=3)
    (run.records / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(RecordsMismatch, match="records with flip copies, training began without"):
        Trainer(run)


def test_unfinished_records_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    (run.records / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match=r"no manifest.json, expected a finished records"):
        Trainer(run)


def test_resuming_on_other_records_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    tiny.make_records(run.records, seed=1)
    with pytest.raises(RecordsMismatch, match="split train has other records"):
        Trainer(run)


def test_a_validation_split_without_images_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    manifest = Manifest.load(run.records)
    hollow = replace(manifest, splits={**manifest.splits, "val": ()})
    (run.records / "manifest.json").write_text(hollow.to_json())
    with pytest.raises(InvalidInput, match="validation split 'val' has no images"):
        Trainer(run)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 6)
    Trainer(run).fit(silent)
    checkpoints = run.model_dir / "checkpoints"
    lines: list[str] = []
    truncate(checkpoints / "ckpt-6.data-00000-of-00001")
    Trainer(run).fit(lines.append)
    assert "ckpt-6 cannot be read" in lines[0]
    assert lines[1] == "resuming at step 4 of 6"
    for path in checkpoints.glob("*.data*"):
        truncate(path)
    with pytest.raises(InvalidInput, match=r"none of \d checkpoints can be read"):
        Trainer(run).fit(silent)
    truncate(next((run.model_dir / "best").glob("*.data*")))
    with pytest.raises(InvalidInput, match=r"cannot be read|is damaged"):
        load_trained(run.model_dir)


def test_settings_that_do_not_fit_the_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.model_dir / "config.json", '"hidden_size": 16', '"hidden_size": 17')
    with pytest.raises(InvalidInput, match=r"does not fit config\.json or is damaged"):
        load_trained(run.model_dir)


@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), True),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), False),
    ],
)
def test_one_process_of_a_cluster_saves(
    cluster: dict[str, list[str]], task: tuple[str, int], expected: bool
) -> None:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=task[0], task_id=task[1]
    )
    assert is_chief(resolver) is expected
    assert is_chief(None)


def test_vocabulary_that_does_not_match_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    Vocabulary.build({"other": 1}, 1).save(run.model_dir / "vocabulary.json")
    with pytest.raises(RecordsMismatch, match=r"vocabulary.json: vocabulary \w{8}, expected"):
        load_trained(run.model_dir)
    with pytest.raises(RecordsMismatch, match="vocabulary"):
        Trainer(run)
    Vocabulary.build({"other": 1}, 1).save(run.records / "vocabulary.json")
    with pytest.raises(RecordsMismatch, match=r"records/vocabulary.json"):
        Trainer(make_run(tmp_path, "new", 2))


def test_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 4)
    Trainer(run).fit(silent)
    checkpoints = run.model_dir / "checkpoints"
    # What a kill while step 6 is being written leaves: data, no index, no pointer to it.
    (checkpoints / "ckpt-6.data-00000-of-00001.tempstate123").write_bytes(b"half")
    lines: list[str] = []
    Trainer(make_run(tmp_path, "model", 5)).fit(lines.append)
    assert lines[0] == "resuming at step 4 of 5"


def test_untrained_model_dir(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no manifest.json, expected a directory of `captionb"):
        load_trained(tmp_path)
    run = make_run(tmp_path, "model", 1)
    Trainer(run)
    with pytest.raises(InvalidInput, match=r"no checkpoint in best/, expected a trained model"):
        load_trained(run.model_dir)


TRAIN_TWENTY_STEPS = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

root, name, strategy = Path(sys.argv[1]), *sys.argv[2:4]
if strategy == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = tf.config.LogicalDeviceConfiguration
    tf.config.set_logical_device_configuration(cpu, [logical(), logical()])
from model.stopping import on_sigterm
from model import trainer as module
from model.strategies import make_strategy
chosen = make_strategy(strategy)
from model.trainer import Run, Trainer
from tests.test_model_trainer import EVERYTHING, kept, make_run, send_in_step, silent

# Clipping is active and lengths are uneven: both tell a wrong order of sum and clip.
settings = dict(EVERYTHING, dropout=0.0, clip_norm=0.1, scheduled_sampling=0.0)
plain = make_run(root, name, 20, *settings.items())
trainer = Trainer(Run(plain.records, plain.model_dir, plain.config, chosen, plain.steps))
# One process may be told to send itself a signal in its seventh step.
for number in sys.argv[4:]:
    send_in_step(7, int(number))
trainer.fit(silent)
if trainer.is_chief:
    np.savez(root / f"{name}.npz", *kept(trainer))
print("replicas", chosen.num_replicas_in_sync)
"""


def send_in_step(step: int, number: int) -> None:
    """Let the process send itself a signal while it takes its step of that number."""
    taken, add = itertools.count(1), Meter.add

    def counted(self: Meter, captions: tf.Tensor) -> None:
        if next(taken) == step:
            os.kill(os.getpid(), number)
        add(self, captions)

    Meter.add = counted  # type: ignore[method-assign]


def start(
    root: Path, name: str, strategy: str, tf_config: str = "", number: int | None = None
) -> subprocess.Popen[str]:
    environment = os.environ | ({"TF_CONFIG": tf_config} if tf_config else {})
    command = [sys.executable, "-c", TRAIN_TWENTY_STEPS, str(root), name, strategy]
    command += [] if number is None else [str(int(number))]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a run; its number of replicas."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return int(out.split()[-1])


def saved_weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module", name="one_device")
def fixture_one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replicas")
    tiny.make_records(root / "records")
    assert finish(start(root, "one", "one")) == 1
    return root


def assert_same_weights(root: Path, *names: str) -> None:
    expected = saved_weights(root / "one.npz")
    for name in names:
        for one, other in zip(expected, saved_weights(root / f"{name}.npz"), strict=True):
            # Gradients are added in another order.
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_replicas_train_the_weights_of_one(one_device: Path) -> None:
    assert finish(start(one_device, "mirrored", "mirrored")) == 2
    assert_same_weights(one_device, "mirrored")


def start_two(root: Path, name: str, number: int | None = None) -> list[subprocess.Popen[str]]:
    """A cluster of two, of which the second sends itself a signal."""
    ports = []
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    workers = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": {"worker": workers}, "task": task})
        # Both look at one MODEL_DIR, as machines with a shared disk do.
        sent = number if index == 1 else None
        processes.append(start(root, name, "multiworker", tf_config, sent))
    return processes


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(one_device: Path) -> None:
    assert [finish(process) for process in start_two(one_device, "multiworker")] == [2, 2]
    assert_same_weights(one_device, "multiworker")
    rows = (one_device / "multiworker" / "history.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]


def checkpoint_steps(model_dir: Path) -> list[int]:
    found = (model_dir / "checkpoints").glob("ckpt-*.index")
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in found)


@pytest.mark.slow
def test_a_cluster_that_is_stopped_and_loses_a_process_goes_on(one_device: Path) -> None:
    # Asked in step 7 of one of them, told to both by step 8, saved after step 9.
    assert [finish(process) for process in start_two(one_device, "mended", signal.SIGTERM)] == [
        2,
        2,
    ]
    assert checkpoint_steps(one_device / "mended")[-1] == 9
    survivor, dying = start_two(one_device, "mended", signal.SIGKILL)
    _, err = survivor.communicate(timeout=300)
    dying.communicate(timeout=300)
    assert dying.returncode == -signal.SIGKILL
    assert survivor.returncode == 1
    assert re.search(r"CheckFailed: worker 1 \(127\.0\.0\.1:\d+\) no longer answers", err)
    assert [finish(process) for process in start_two(one_device, "mended")] == [2, 2]
    assert_same_weights(one_device, "mended")


KILLED = """
import os, signal, sys
from pathlib import Path
from model.checkpoints import Checkpoints
from model.trainer import Trainer
from tests.test_model_trainer import EVERYTHING, make_run, send_in_step, silent

moment, run = sys.argv[2], make_run(Path(sys.argv[1]), "parts", 18, *EVERYTHING)
save = Checkpoints.save

def killed(self, step):
    if step >= 8 and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    if step >= 8 and moment == "while":
        # The files without the word that they are the newest, and these cut short.
        path = self._latest.checkpoint.write(str(run.model_dir / "checkpoints" / f"ckpt-{step}"))
        data = Path(f"{path}.data-00000-of-00001")
        data.write_bytes(data.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step)

Checkpoints.save = killed
if moment == "between":
    send_in_step(8, signal.SIGKILL)
Trainer(run).fit(silent)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    """In the middle of an epoch, between validation and checkpoint, while one is written."""
    whole_run = make_run(tmp_path, "whole", 18, *EVERYTHING)
    whole = Trainer(whole_run)
    whole.fit(silent)
    for moment in ("between", "before", "while"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), moment],
            capture_output=True,
            cwd=Path(__file__).parents[1],
            timeout=300,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert checkpoint_steps(tmp_path / "parts"), moment
    run = make_run(tmp_path, "parts", 18, *EVERYTHING)
    last = Trainer(run)
    last.fit(silent)
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history(run) == history(whole_run)


def test_multiworker_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InvalidInput, match="TF_CONFIG is not set"):
        make_strategy("multiworker")
    monkeypatch.setenv("TF_CONFIG", "{bad")
    with pytest.raises(InvalidInput, match="TF_CONFIG is not usable"):
        make_strategy("multiworker")
