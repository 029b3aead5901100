"""Training in bfloat16, in float16 with a loss scale, and compiled by XLA: same as in float32."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from model import loss_scale, training_step, xla
from model.checkpoints import load_trained
from model.config import Config
from model.dataset import images
from model.errors import CheckFailed, InvalidInput
from model.loss_scale import LossScale
from model.objectives import Batch
from model.run import Run
from model.trainer import Trainer
from model.training_config import BFLOAT16, FLOAT16, FLOAT32, PRECISIONS
from model.training_step import Counts, Gradients, Taken, TrainingStep
from tests import tiny
from tests.trainer_fixtures import EVERYTHING, history, kept, make_run, silent, weights

# All images in every batch: one size of them to be compiled.
WHOLE = (("batch_size", len(tiny.CAPTIONS)), ("validation_split", "none"))
STEPS = 50
IGNORANCE = math.log(len(tiny.make_vocabulary()))
MATMULS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("precision", "float64"), "training.precision 'float64', expected one of float32, bfl"),
        (("precision", 16), "training.precision 16, expected str"),
        (("xla", 1), "training.xla 1, expected bool"),
    ],
)
def test_settings_that_are_none(setting: tuple[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Config().updated([setting])


def test_a_reward_cannot_be_compiled() -> None:
    with pytest.raises(InvalidInput, match=r"xla true with .*stage self_critical, expected cross"):
        Config().updated([("xla", True), ("stage", "self_critical")])


class Trained(NamedTuple):
    """A run of STEPS steps, and the graph of its step."""

    run: Run
    trainer: Trainer
    graph: tf.Graph

    @property
    def entropy(self) -> float:
        return history(self.run)[-1]["cross_entropy"]


def train(root: Path, name: str, *changes: tuple[str, object]) -> Trained:
    settings = (*WHOLE, ("validation_steps", STEPS), ("dropout", 0.0))
    run = make_run(root, name, STEPS, *settings, *changes)
    trainer, compiled = Trainer(run), []

    def keep(batch_spec: object) -> Any:
        function: Any = TrainingStep.compiled(trainer._step, batch_spec)
        compiled.append(function)
        return function

    trainer._step.compiled = keep  # type: ignore[method-assign]
    trainer.fit(silent)
    return Trained(run, trainer, compiled[0].get_concrete_function().graph)


@pytest.fixture(scope="module", name="trained")
def fixture_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("precision")
    return {name: train(root, name, ("precision", name)) for name in PRECISIONS}


def functions(graph: tf.Graph) -> Iterator[Any]:
    """The functions that a graph calls, with those that they call."""
    yield from graph.as_graph_def(add_shapes=False).library.function


def operations(graph: tf.Graph) -> Iterator[Any]:
    """All NodeDefs of a graph, loops and conditions included."""
    yield from graph.as_graph_def().node
    for function in functions(graph):
        yield from function.node_def


def dtypes(graph: tf.Graph, kinds: tuple[str, ...]) -> list[str]:
    """What the operations of some kinds compute in."""
    return [tf.as_dtype(op.attr["T"].type).name for op in operations(graph) if op.op in kinds]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16])
def test_trains_to_the_loss_of_float32(precision: str, trained: dict[str, Trained]) -> None:
    expected = trained[FLOAT32].entropy
    assert expected < IGNORANCE / 2
    assert trained[precision].entropy == pytest.approx(expected, rel=0.02)
    assert trained[precision].entropy != expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_matmuls_have_the_precision_and_what_is_left_has_float32(
    precision: str, trained: dict[str, Trained]
) -> None:
    """Forward and backward; ignoring the setting would pass every comparison of losses."""
    graph = trained[precision].graph
    matmuls = dtypes(graph, MATMULS)
    # Each layer once forward and twice backward: cells, keys, mean, words, output, and in the
    # loop two GRUs with their inputs, the query, the score and the context.
    assert len(matmuls) >= 3 * 11
    assert set(matmuls) == {precision}
    losses = ("Softmax", "SparseSoftmaxCrossEntropyWithLogits", "Sigmoid", "L2Loss", "Rsqrt")
    assert len(dtypes(graph, losses)) >= 4
    assert set(dtypes(graph, losses)) == {FLOAT32}
    assert {variable.dtype for variable in trained[precision].trainer.captioner.variables} == {
        FLOAT32
    }


@pytest.mark.slow
def test_a_model_trained_in_bfloat16_captions_in_float32(trained: dict[str, Trained]) -> None:
    """Validation, which picks the best, and evaluation and export, which load it."""
    run, trainer, step = trained[BFLOAT16]
    loaded = load_trained(run.model_dir)
    assert {operation.attr["T"].type for operation in operations(step)} >= {
        tf.bfloat16.as_datatype_enum
    }
    grid = tf.TensorSpec([None, *tiny.GRID_SHAPE], tf.float16)
    search = trainer._writer._search.get_concrete_function(grid)
    low = [op.name for op in operations(search.graph) if "DT_BFLOAT16" in str(op.attr)]
    assert low == []
    for one, other in zip(weights(trainer), loaded.captioner.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    (batch,) = images(trainer._train_split, len(tiny.CAPTIONS))
    found = search(batch["grid"])
    words = found.tokens[:, 0]
    start = tf.fill([len(words), 1], loaded.vocabulary.start_id)
    logits, _ = loaded.captioner(
        batch["grid"], tf.concat([start, words], 1), tf.range(len(words)), precision=FLOAT32
    )
    log_probs = tf.nn.log_softmax(logits).numpy()
    for row, length in enumerate(found.length[:, 0].numpy()):
        said = [*words[row, :length].numpy(), loaded.vocabulary.end_id]
        expected = sum(log_probs[row, time, word] for time, word in enumerate(said))
        assert float(found.log_prob[row, 0]) == pytest.approx(expected, abs=1e-4)


NUMBERS = (tf.constant(3), tf.constant(0))
CLIPS = (("clip_value", 1e-7), ("clip_norm", 3e-7))


def begun(root: Path, precision: str) -> tuple[Trainer, Batch]:
    """A run before its first step, and a batch."""
    changes = (*WHOLE, *CLIPS, ("dropout", 0.0), ("ema_decay", 0.9), ("warmup_steps", 0))
    trainer = Trainer(make_run(root, precision, 4, *changes, ("precision", precision)))
    return trainer, next(iter(trainer._batches(0)))


@pytest.fixture(scope="module", name="float16")
def fixture_float16(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Batch]:
    return begun(tmp_path_factory.mktemp("float16"), FLOAT16)


def small_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch count a million times its words, as only thousands of captions have."""
    summed = training_step._over_replicas

    def many(own: Counts) -> Counts:
        found = summed(own)
        return found._replace(words=found.words * 1e6)

    monkeypatch.setattr(training_step, "_over_replicas", many)


def gradient(trainer: Trainer, batch: Batch) -> tuple[np.ndarray, float]:
    """The clipped gradient of all weights in a row, and its norm before."""
    taken, gradients = trainer._step._on_replica(batch, *NUMBERS)
    row = tf.concat([tf.reshape(each, [-1]) for each in gradients], 0)
    return row.numpy(), float(taken.gradient_norm)


def test_small_gradients_survive_float16(
    float16: tuple[Trainer, Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are lost without a scale; with one they are float32's, clipped as these are."""
    trainer, batch = float16
    reference, _ = begun(tmp_path, FLOAT32)
    for variable, weight in zip(reference.captioner.variables, weights(trainer), strict=True):
        variable.assign(weight)
    small_gradients(monkeypatch)
    expected, norm = gradient(reference, batch)
    # Both clips are at work.
    assert np.sort(np.abs(expected))[-2] == np.abs(expected).max()
    assert np.linalg.norm(expected) == pytest.approx(3e-7, rel=1e-3)
    trainer.loss_scale._scale.assign(2.0**15)
    found, found_norm = gradient(trainer, batch)
    assert found_norm == pytest.approx(norm, rel=0.01)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    trainer.loss_scale._scale.assign(1.0)
    assert gradient(trainer, batch)[1] < 0.5 * norm


def state(trainer: Trainer) -> list[np.ndarray]:
    changed = (*trainer.optimizer.variables, *trainer.averages.variables)
    return [*weights(trainer), *(variable.numpy() for variable in changed)]


def test_a_step_that_overflows_is_skipped_and_lowers_the_scale(
    float16: tuple[Trainer, Batch],
) -> None:
    trainer, batch = float16
    scale = trainer.loss_scale
    scale._scale.assign(2.0**40)
    scale._good_steps.assign(7)
    before = state(trainer)
    taken = trainer._step(batch, *NUMBERS)
    # Clipping by value makes a number of an infinity.
    assert not math.isfinite(float(taken.gradient_norm))
    assert math.isfinite(float(taken.loss))
    assert float(taken.loss_scale) == 2.0**40
    for one, other in zip(before, state(trainer), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (float(scale.value), int(scale._good_steps)) == (2.0**39, 0)
    scale._scale.assign(2.0**10)
    trainer._step(batch, *NUMBERS)
    assert (float(scale.value), int(scale._good_steps)) == (2.0**10, 1)
    same = [(one == other).all() for one, other in zip(before, state(trainer), strict=True)]
    # The statistics of the grids, and the rate.
    assert sum(same) <= 3


def test_only_what_a_lower_scale_may_save_goes_on(float16: tuple[Trainer, Batch]) -> None:
    trainer, _ = float16

    def check(loss: float, norm: float, scale: float) -> None:
        rest = (tf.constant(1.0), tf.constant(norm), tf.constant(scale))
        trainer._check(1, Taken(tf.constant(loss), *rest, tf.constant(2.0), tf.constant(False)))

    check(1.0, math.inf, 2.0)
    check(1.0, math.nan, 2.0)
    for lost in ((1.0, math.inf, 1.0), (1.0, math.nan, 1.0), (math.nan, math.nan, 2.0)):
        with pytest.raises(CheckFailed, match="at step 1, "):
            check(*lost)


def nothing() -> None:
    """A step that changes nothing."""


def test_the_scale_grows_after_many_good_steps_and_is_never_below_one() -> None:
    scale, good, lost = LossScale(FLOAT16), tf.constant(1.0), tf.constant(math.nan)
    assert float(scale.value) == 2.0**15
    scale._good_steps.assign(1998)
    scale.take(good, nothing)
    assert float(scale.value) == 2.0**15
    scale.take(good, nothing)
    assert (float(scale.value), int(scale._good_steps)) == (2.0**16, 0)
    np.testing.assert_array_equal(scale.unscaled([tf.constant([2.0**17])])[0], [2.0])
    scale._scale.assign(1.5)
    scale.take(lost, lambda: pytest.fail("taken"))
    assert float(scale.value) == 1.0


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_only_float16_has_a_scale(precision: str) -> None:
    """So that the trainer stops where a gradient is lost."""
    steps: list[float] = []
    scale = LossScale(precision)
    scale.take(tf.constant(math.nan), lambda: steps.append(1.0))
    assert steps == [float(scale.value)] == [1.0]
    assert scale.variables == ()


@pytest.mark.slow
def test_float16_resumes_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a scale that overflows, before the stop and after it."""
    monkeypatch.setattr(loss_scale, "_FIRST", 2.0**20)
    changes = (*EVERYTHING, ("validation_split", "val"), ("precision", FLOAT16))
    run = make_run(tmp_path, "whole", 9, *changes)
    whole = Trainer(run)
    whole.fit(silent)
    first = Trainer(make_run(tmp_path, "parts", 3, *changes))
    first.fit(silent)
    last = Trainer(make_run(tmp_path, "parts", 9, *changes))
    last.fit(silent)
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 2.0**20 > float(first.loss_scale.value) > float(last.loss_scale.value)
    taken = int(whole.optimizer.iterations.value.numpy())
    assert taken == 9 - math.log2(2.0**20 / float(whole.loss_scale.value))
    assert 1 < taken < 6
    rows = (run.model_dir / "history.jsonl").read_text().splitlines()
    loaded = [json.loads(row, parse_constant=pytest.fail) for row in rows]
    assert [row["step"] for row in loaded] == [3, 6, 9]
    assert loaded[0]["loss_scale"] > loaded[2]["loss_scale"]
    assert "gradient_norm" not in loaded[0]


def test_padding_makes_few_sizes_and_changes_nothing(tmp_path: Path) -> None:
    settings = dict(EVERYTHING, scheduled_sampling=0.0, batch_size=4)
    trainer = Trainer(make_run(tmp_path, "model", 2, *settings.items(), ("dropout", 0.0)))
    sizes: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    for _, batch in zip(range(40), trainer._batches(0), strict=False):
        padded = xla.padded(batch, 0)
        for is_padded, each in ((True, padded), (False, batch)):
            assert each["inputs"].shape == each["labels"].shape
            assert each["image_index"].shape == each["labels"].shape[:1]
            sizes[is_padded].add(tuple(each["labels"].shape))
    assert len(sizes[True]) <= 4 < 8 < len(sizes[False])
    assert all(rows % 8 == 0 and words % 4 == 0 for rows, words in sizes[True])
    assert padded["labels"].shape != batch["labels"].shape
    seed, counts = tf.constant([0, 3]), Counts(*tf.unstack(tf.constant([30.0, 7.0, 30.0, 0.0])))
    plain, other = (
        trainer._step._gradients_by(each, seed, tf.constant(3), tf.constant(1.0), counts)
        for each in (batch, padded)
    )
    assert_same_step(plain, other)


def assert_same_step(one: Gradients, other: Gradients) -> None:
    np.testing.assert_allclose(one[:2], other[:2], rtol=1e-5)
    for mine, yours in zip(one.scaled, other.scaled, strict=True):
        np.testing.assert_allclose(mine, yours, atol=1e-4)


def draw_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace draws, which XLA makes otherwise, by functions of place and seed."""

    def uniform(shape: tf.Tensor, seed: tf.Tensor, **_: Any) -> tf.Tensor:
        place = tf.reshape(tf.range(tf.reduce_prod(shape)), shape)
        return tf.cast((place * 7919 + tf.reduce_sum(seed) * 31) % 101, tf.float32) / 101

    def dropout(values: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
        return tf.where(uniform(tf.shape(values), seed) < rate, 0.0, values / (1 - rate))

    def categorical(logits: tf.Tensor, _: int, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        # Not the likeliest: a rounding would choose between two that are equally likely.
        rows, words = tf.unstack(tf.shape(logits))
        return tf.cast(uniform([rows, 1], seed) * tf.cast(words, tf.float32), dtype)

    monkeypatch.setattr(tf.random, "stateless_uniform", uniform)
    monkeypatch.setattr(tf.nn.experimental, "stateless_dropout", dropout)
    monkeypatch.setattr(tf.random, "stateless_categorical", categorical)


@pytest.mark.slow
def test_xla_computes_the_same_with_everything_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_by_place(monkeypatch)
    plain, other = (
        Trainer(make_run(tmp_path, str(on), 2, *EVERYTHING, WHOLE[0], ("xla", on)))
        for on in (False, True)
    )
    batch = xla.padded(next(iter(plain._batches(0))), 0)
    counts = Counts(*tf.unstack(tf.constant([60.0, 14.0, 60.0, 0.0])))
    arguments = (batch, tf.constant([0, 5]), tf.constant(5), tf.constant(1.0), counts)
    assert_same_step(
        tf.function(plain._step._gradients_by)(*arguments), other._step._xla_gradients(*arguments)
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_xla_trains_to_the_same_loss(
    precision: str, trained: dict[str, Trained], tmp_path: Path
) -> None:
    compiled = train(tmp_path, "compiled", ("xla", True), ("precision", precision))
    assert compiled.entropy == pytest.approx(trained[FLOAT32].entropy, rel=0.02)
    must = [f for f in functions(compiled.graph) if f.attr["_XlaMustCompile"].b]
    assert len(must) == 1
    # All of it: loops are functions that this one calls.
    outside = compiled.graph.as_graph_def().node
    assert not [node.name for node in outside if node.op in MATMULS or "While" in node.op]
    assert set(dtypes(compiled.graph, MATMULS)) == {precision}
    plain = trained[precision].graph
    assert not any(f.attr["_XlaMustCompile"].b for f in functions(plain))


REPLICAS = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

root, name, strategy = Path(sys.argv[1]), *sys.argv[2:4]
cpu = tf.config.list_physical_devices("CPU")[0]
logical = tf.config.LogicalDeviceConfiguration
tf.config.set_logical_device_configuration(cpu, [logical(), logical()])
from model import loss_scale
from model.strategies import make_strategy
chosen = make_strategy(strategy)
from model.run import Run
from model.trainer import train
from tests.trainer_fixtures import EVERYTHING, kept, make_run, silent

loss_scale._FIRST = 2.0**20
settings = dict(EVERYTHING, dropout=0.0, clip_norm=0.1, scheduled_sampling=0.0)
settings |= dict(schedule="constant", validation_split="none")
settings |= dict(pair.split("=") for pair in sys.argv[5:]) | dict(xla="xla=" in sys.argv[4])
plain = make_run(root, name, int(sys.argv[4].split("=")[-1]), *settings.items())
trainer = train(Run(plain.records, plain.model_dir, plain.config, chosen, plain.steps), silent)
assert chosen.num_replicas_in_sync == (2 if strategy == "mirrored" else 1)
scale = [float(trainer.loss_scale.value), int(trainer.optimizer.iterations.value.numpy())]
np.savez(root / f"{name}.npz", *kept(trainer)[:-1], scale=scale)
"""


def replicas(root: Path, name: str, strategy: str, steps: str, *settings: str) -> Any:
    """Weights and loss scale of a run in a process with two logical devices."""
    command = [sys.executable, "-c", REPLICAS, str(root), name, strategy, steps, *settings]
    directory = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(root / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.slow
def test_two_replicas_skip_the_same_steps(tmp_path: Path) -> None:
    one, two = (
        replicas(tmp_path, strategy, strategy, "12", "precision=float16")
        for strategy in ("one", "mirrored")
    )
    np.testing.assert_array_equal(one["scale"], two["scale"])
    assert one["scale"][0] < 2.0**20
    assert 4 < one["scale"][1] < 12
    for name in one:
        # Two sums rounded to float16 are not the sum rounded once.
        np.testing.assert_allclose(one[name], two[name], atol=5e-3, rtol=0, err_msg=name)


@pytest.mark.slow
def test_xla_runs_in_each_of_two_replicas(tmp_path: Path) -> None:
    one = replicas(tmp_path, "one", "one", "3")
    two = replicas(tmp_path, "mirrored", "mirrored", "xla=3")
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5, rtol=0, err_msg=name)
