"""Self-critical training: what is drawn, rewarded and minimised."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pycocoevalcap.cider.cider_scorer import CiderScorer

from model.captioner import Captioner
from model.dataset import Split
from model.errors import InvalidInput
from model.objectives import Batch
from model.records import Manifest
from model.run import Run
from model.self_critical import SelfCritical
from model.trainer import Trainer
from tests import tiny
from tests.trainer_fixtures import history, kept, make_run, silent

STAGE = ("stage", "self_critical")
SAMPLES = 3
SEED = tf.constant([4, 7])
END = "<end>"


def second_phase(tmp_path: Path, steps: int, *changes: tuple[str, object]) -> Run:
    first = make_run(tmp_path, "first", 30)
    if not first.model_dir.exists():
        Trainer(first).fit(silent)
    second = make_run(tmp_path, "second", steps, STAGE, ("samples", SAMPLES), *changes)
    return replace(second, init_from=first.model_dir)


def objective(
    tmp_path: Path, *changes: tuple[str, object]
) -> tuple[SelfCritical, Captioner, Batch]:
    """Of a captioner that knows nothing, and a batch of four images."""
    trainer = Trainer(make_run(tmp_path, "model", 1, *changes))
    config = trainer._run.config.updated([STAGE, ("samples", SAMPLES)])
    aim = SelfCritical(trainer.captioner, config, trainer._vocabulary, trainer._train_split)
    return aim, trainer.captioner, next(iter(trainer._batches(0)))


def drawn(aim: SelfCritical, captioner: Captioner, batch: Batch) -> tf.Tensor:
    """The labels that a step draws."""
    grid = batch["grid"]
    memory = captioner.look(grid, SEED).rows(tf.repeat(tf.range(len(grid)), SAMPLES))
    units = captioner.kept(len(grid) * SAMPLES, aim._settings.max_length + 1, SEED)
    found = aim._draw(memory, units, tf.constant(len(grid)), grid.shape[1], SEED)
    return aim._cut(found).labels


def words_of(labels: np.ndarray | list[list[int]]) -> list[str]:
    """Labels as text, `<end>` among the words."""
    vocabulary = tiny.make_vocabulary()
    special = {vocabulary.end_id: END}
    return [
        " ".join(special.get(i, f"w{i}") for i in row if i != vocabulary.pad_id)
        for row in np.asarray(labels).tolist()
    ]


def rewards(batch: Batch, labels: np.ndarray, samples: int) -> np.ndarray:
    """By coco-caption's own scorer, n-grams weighed by the training split; [N, samples]."""
    vocabulary = tiny.make_vocabulary()
    corpus = CiderScorer()
    for captions in tiny.CAPTIONS:
        ids = [[*vocabulary.encode(caption), vocabulary.end_id] for caption in captions]
        corpus += ("", [" ".join(words_of([row])[0] for row in [each]) for each in ids])
    corpus.compute_doc_freq()
    references = words_of(batch["labels"])
    index = batch["image_index"].numpy()
    scorer = CiderScorer()
    for row, text in enumerate(words_of(labels)):
        scorer += (text, [references[i] for i in np.flatnonzero(index == row // samples)])
    scorer.document_frequency = corpus.document_frequency
    scores = []
    # Its number of images is that of the corpus.
    for truths, caption in zip(scorer.crefs, scorer.ctest, strict=True):
        one = CiderScorer()
        one.crefs, one.ctest = [truths] + [[]] * (len(tiny.CAPTIONS) - 1), [caption]
        one.document_frequency = corpus.document_frequency
        scores.extend(one.compute_cider())
    return np.array(scores).reshape(-1, samples)


def surprise(captioner: Captioner, batch: Batch, labels: tf.Tensor) -> np.ndarray:
    """−log p of each caption under what may be written, without dropout: [M]."""
    vocabulary = tiny.make_vocabulary()
    start = tf.fill([len(labels), 1], vocabulary.start_id)
    inputs = tf.concat([start, labels[:, :-1]], axis=1)
    rows = tf.repeat(tf.range(len(batch["grid"])), len(labels) // len(batch["grid"]))
    logits = captioner(batch["grid"], inputs, rows)[0].numpy().astype(np.float64)
    logits[..., [vocabulary.pad_id, vocabulary.start_id, vocabulary.unk_id]] = -np.inf
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, labels.numpy()[..., np.newaxis], axis=-1)[..., 0]
    return -np.where(labels.numpy() != vocabulary.pad_id, chosen, 0.0).sum(axis=1)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_minimises_surprise_times_advantage(tmp_path: Path, baseline: str) -> None:
    changes = (("dropout", 0.0), ("baseline", baseline))
    aim, captioner, batch = objective(tmp_path, *changes)
    labels = drawn(aim, captioner, batch)
    reward = rewards(batch, labels, SAMPLES)
    assert len(np.unique(reward)) > 3
    if baseline == "mean":
        others = (reward.sum(axis=1, keepdims=True) - reward) / (SAMPLES - 1)
    else:
        written = aim._cut(aim._write_greedily(batch["grid"])).labels
        others = rewards(batch, written, 1)
    advantage = (reward - others).reshape(-1)
    found = tf.function(aim)(batch, SEED, tf.constant(0))
    expected = (advantage * surprise(captioner, batch, labels)).sum()
    assert float(found.loss) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(found.labels, labels)
    assert float(found.words) == np.count_nonzero(labels.numpy() != tiny.make_vocabulary().pad_id)
    assert float(found.measured) == pytest.approx(reward.sum(), rel=1e-5)
    assert float(found.measured_count) == reward.size


def test_an_end_is_rewarded_and_missed_where_there_is_none(tmp_path: Path) -> None:
    aim, _, batch = objective(tmp_path)
    row = int(np.flatnonzero(batch["image_index"].numpy() == 0)[0])
    whole = batch["labels"][row : row + 1]
    pad, end = tiny.make_vocabulary().pad_id, tiny.make_vocabulary().end_id
    cut = tf.where(whole == end, pad, whole)
    first = {"labels": batch["labels"][row : row + 1], "image_index": tf.constant([0])}
    ended, endless = (float(aim._rewards(first, labels, 1)[0]) for labels in (whole, cut))
    assert ended == pytest.approx(10.0)
    assert endless < 9.0


def test_a_caption_of_the_greatest_length_has_no_end(tmp_path: Path) -> None:
    aim, captioner, batch = objective(tmp_path, ("max_length", 2))
    labels = drawn(aim, captioner, batch).numpy()
    vocabulary = tiny.make_vocabulary()
    assert labels.shape == (4 * SAMPLES, 2)
    ended = (labels == vocabulary.end_id).any(axis=1)
    # A model that knows nothing seldom ends so soon.
    assert not ended.all()
    np.testing.assert_array_equal((labels != vocabulary.pad_id).sum(axis=1)[~ended], 2)


def test_draws_with_the_units_that_the_gradient_keeps(tmp_path: Path) -> None:
    aim, captioner, batch = objective(tmp_path, ("dropout", 0.5))
    labels = drawn(aim, captioner, batch)
    memory = captioner.look(batch["grid"], SEED).rows(tf.repeat(tf.range(4), SAMPLES))
    units = captioner.kept(4 * SAMPLES, aim._settings.max_length + 1, SEED)
    inputs = tf.pad(labels[:, :-1], [[0, 0], [1, 0]], constant_values=aim._settings.start_id)
    whole, _ = captioner.read(inputs, memory, units.until(tf.constant(labels.shape[1])))
    state = captioner.initial_state(4 * SAMPLES)
    for time in range(labels.shape[1]):
        place = tf.constant(time)
        logits, state, _ = captioner.practise(inputs[:, time], place, state, memory, units)
        np.testing.assert_allclose(logits, whole[:, time], atol=1e-5)
    # And they are the units of teacher forcing.
    taught, _ = captioner(batch["grid"], batch["inputs"], batch["image_index"], seed=SEED)
    rows, length = batch["inputs"].shape
    units = captioner.kept(rows, length, SEED)
    memory = captioner.look(batch["grid"], SEED).rows(batch["image_index"])
    np.testing.assert_allclose(captioner.read(batch["inputs"], memory, units)[0], taught, atol=1e-5)


def test_the_gradient_is_of_what_was_drawn_with_units_dropped(tmp_path: Path) -> None:
    aim, captioner, batch = objective(tmp_path, ("dropout", 0.5))
    labels = drawn(aim, captioner, batch)
    found = aim(batch, SEED, tf.constant(0))
    np.testing.assert_array_equal(found.labels, labels)
    vocabulary = tiny.make_vocabulary()
    memory = captioner.look(batch["grid"], SEED).rows(tf.repeat(tf.range(4), SAMPLES))
    units = captioner.kept(4 * SAMPLES, aim._settings.max_length + 1, SEED)
    inputs = tf.pad(labels[:, :-1], [[0, 0], [1, 0]], constant_values=vocabulary.start_id)
    logits, _ = captioner.read(inputs, memory, units.until(tf.constant(labels.shape[1])))
    logits = logits.numpy().astype(np.float64)
    logits[..., [vocabulary.pad_id, vocabulary.start_id, vocabulary.unk_id]] = -np.inf
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, labels.numpy()[..., np.newaxis], axis=-1)[..., 0]
    each = -np.where(labels.numpy() != vocabulary.pad_id, chosen, 0.0).sum(axis=1)
    reward = rewards(batch, labels, SAMPLES)
    others = (reward.sum(axis=1, keepdims=True) - reward) / (SAMPLES - 1)
    expected = ((reward - others).reshape(-1) * each).sum()
    assert float(found.loss) == pytest.approx(expected, rel=1e-4)


def test_rewards_may_be_computed_beside_the_second_reading(tmp_path: Path) -> None:
    aim, _, batch = objective(tmp_path)
    graph = tf.function(aim).get_concrete_function(batch, SEED, tf.constant(0)).graph
    (reward,) = (node for node in graph.as_graph_def().node if "PyFunc" in node.op)
    # A stateful one would wait for all that came before it, and all after it for it.
    assert reward.op == "PyFuncStateless"
    assert not any(name.startswith("^") for name in reward.input)
    assert not any(f"^{reward.name}" in node.input for node in graph.as_graph_def().node)


def test_ngrams_weigh_as_in_the_training_split(tmp_path: Path) -> None:
    aim, *_ = objective(tmp_path)
    split = Split(tmp_path / "records", Manifest.load(tmp_path / "records"), "train")
    assert split.num_images == len(tiny.CAPTIONS)
    (dog,) = tiny.make_vocabulary().encode("dog")
    (tree,) = tiny.make_vocabulary().encode("tree")
    (a,) = tiny.make_vocabulary().encode("a")
    weights = aim._cider._weights
    assert weights[(dog,)] == weights[(tree,)] == pytest.approx(np.log(7))
    assert weights[(a,)] == pytest.approx(np.log(7 / 7))
    assert weights[(tiny.make_vocabulary().end_id,)] == pytest.approx(0.0)


def test_needs_a_model_to_begin_with(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2, STAGE)
    with pytest.raises(InvalidInput, match="self_critical without --init_from"):
        Trainer(run).fit(silent)
    with pytest.raises(InvalidInput, match=r"training\.samples 1, expected 2 to 64"):
        make_run(tmp_path, "other", 2, STAGE, ("samples", 1))
    make_run(tmp_path, "other", 2, STAGE, ("samples", 1), ("baseline", "greedy"))


@pytest.mark.slow
def test_raises_the_reward(tmp_path: Path) -> None:
    changes = (("validation_steps", 20), ("learning_rate", 5e-3), ("dropout", 0.0))
    run = second_phase(tmp_path, 120, *changes)
    Trainer(run).fit(silent)
    rows = history(run)
    assert rows[0]["step"] == 0
    trained = [row["reward"] for row in rows[1:]]
    assert np.mean(trained[-2:]) > 1.5 * trained[0]
    assert rows[-1]["val_cider"] > rows[0]["val_cider"]


@pytest.mark.slow
def test_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    whole = Trainer(second_phase(tmp_path, 7))
    whole.fit(silent)
    run = replace(second_phase(tmp_path, 3), model_dir=tmp_path / "parts")
    Trainer(run).fit(silent)
    last = Trainer(replace(run, steps=7))
    last.fit(silent)
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)


TWO_REPLICAS = """
import sys
from pathlib import Path
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from dataclasses import replace
from model.strategies import make_strategy
from model.trainer import Trainer
from model.training_step import replica_seed
from tests.test_model_self_critical import second_phase

run = second_phase(Path(sys.argv[1]), 4, ("dropout", 0.0))
trainer = Trainer(replace(run, strategy=make_strategy("mirrored")))
trainer._begin()
batches = trainer._batches(0)
batch = next(iter(batches))
local = {name: trainer._strategy.experimental_local_results(batch[name]) for name in batch}
step = tf.constant(0)
aims = [
    trainer._objective(
        {name: local[name][replica] for name in local}, replica_seed(0, replica, 2, step), step
    )
    for replica in range(2)
]
taken = trainer._step.compiled(batches.element_spec)(batch, step, tf.constant(0))
reward = sum(float(aim.measured) for aim in aims) / sum(float(aim.measured_count) for aim in aims)
loss = sum(float(aim.loss) for aim in aims) / sum(float(aim.words) for aim in aims)
print(float(taken.measured), reward, float(taken.loss), loss)
"""


@pytest.mark.slow
def test_two_replicas_draw_apart_and_count_together(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured, reward, loss, expected = map(float, done.stdout.split()[-4:])
    assert measured == pytest.approx(reward, rel=1e-5)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert measured > 0
