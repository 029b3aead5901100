"""The encoder that training changes: exactly the layers asked for, at a rate of their own."""

import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import captionbeam
from export import saved_model
from export.module import CaptionModule
from export.verify import verify
from model.checkpoints import Trained, load_trained
from model.dataset import Split, Stream, batch_keys, images, training_batches
from model.decoding import search_captions
from model.encoder import Encoder
from model.encoder_config import FIRST_STAGES, EncoderConfig
from model.errors import CheckFailed, InvalidInput, RecordsMismatch
from model.evaluation import evaluate
from model.fine_tuning import TunedEncoder, grids_by
from model.preprocessing import KEEP, SQUASH, prepare, prepare_batch
from model.records import GRIDS, IMAGES, Manifest
from model.run import Run
from model.trainer import Trainer
from serving import contract
from tests import tiny
from tests.fine_tuning_fixtures import (
    ALL,
    CLIPPED,
    ENCODER,
    ENCODER_RATE,
    all_kept,
    encoder_weights,
    fit,
    make_records,
    make_run,
    photograph,
)
from tests.trainer_fixtures import (
    EVERYTHING,
    check_sums,
    checkpoint_steps,
    history,
    validate_as,
)


@pytest.fixture(scope="module", name="encoder")
def fixture_encoder() -> Encoder:
    return Encoder(ENCODER)


@pytest.fixture(scope="module", name="world")
def fixture_world(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fine_tuning")
    make_records(root, encoder)
    return root


def is_trained(path: str, first_stage: int) -> bool:
    """Whether a weight should change, from its name alone: conv4_block1_2_conv/kernel."""
    layer, _ = path.split("/")
    return layer.endswith("_conv") and layer[4] in "2345"[first_stage - 2 :] and layer[5] == "_"


@pytest.mark.parametrize("trainable", FIRST_STAGES)
def test_the_convolutions_from_a_stage_on_are_trained_and_nothing_else(
    encoder: Encoder, trainable: str
) -> None:
    stage = int(trainable[-1])
    tuned = TunedEncoder(encoder, EncoderConfig(trainable))
    trained = {variable.path for variable in tuned.trained}
    assert trained == {path for path in tuned.weights if is_trained(path, stage)}
    # Kernels and biases of 3, 4, 6 and 3 blocks of three convolutions, and a shortcut a stage.
    blocks = {2: 16, 3: 13, 4: 9, 5: 3}[stage]
    assert len(trained) == 2 * (3 * blocks + 6 - stage)
    assert len(tuned.weights) == len(encoder.network.weights)


def test_it_encodes_as_the_frozen_encoder_does(encoder: Encoder) -> None:
    """Statistics of a batch of two would give quite other grids."""
    prepared = [prepare(photograph(index), ENCODER.image_size) for index in range(2)]
    pixels, extents = (tf.stack(parts) for parts in zip(*prepared, strict=True))
    before = encoder_weights(encoder)
    tuned = TunedEncoder(encoder, EncoderConfig("from_block_2"))
    expected = encoder(pixels, extents)
    found = tuned(pixels, extents)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(tf.reduce_mean(expected)))
    for path, weight in encoder_weights(encoder).items():
        np.testing.assert_array_equal(weight, before[path])


@pytest.mark.parametrize("aspect", [SQUASH, KEEP])
def test_batches_of_images_are_prepared_pictures_beside_their_captions(
    world: Path, aspect: str
) -> None:
    manifest = Manifest.load(world / IMAGES)
    made = {**manifest.preprocessing, "aspect": aspect}
    split = Split(world / IMAGES, replace(manifest, preprocessing=made), "train")
    vocabulary = tiny.make_vocabulary()
    stream = Stream(seed=1, shuffle_buffer=9, batch_size=3, first_step=1)
    (batch,) = training_batches(split, vocabulary, stream).take(1)
    assert "grid" not in batch
    assert batch["image"].shape == (3, 64, 64, 3)
    keys = batch_keys(split, stream)
    for row, words in zip(batch["image_index"].numpy(), batch["labels"].numpy(), strict=True):
        caption = vocabulary.decode(words)
        place = next(i for i, texts in enumerate(tiny.CAPTIONS) if caption in texts)
        picture, extent = prepare(photograph(place), ENCODER.image_size, aspect)
        np.testing.assert_array_equal(batch["image"][row], picture)
        np.testing.assert_array_equal(batch["extent"][row], extent)
        assert extent.numpy().tolist() == ([64, 64] if aspect == SQUASH else [53, 64])
        assert keys[row] == f"image-{place}.jpg"


def test_grids_of_images_are_those_of_records_of_grids(world: Path, encoder: Encoder) -> None:
    found, stored = (
        next(images(Split(world / content, Manifest.load(world / content), "val"), 9))
        for content in (IMAGES, GRIDS)
    )
    grids = grids_by(encoder)(found)
    assert grids.dtype == tf.float16
    np.testing.assert_array_equal(grids, stored["grid"])
    assert found["key"].numpy().tolist() == stored["key"].numpy().tolist()


def test_records_that_do_not_fit_the_setting_are_refused(world: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"encoder.trainable": "from_block_4"}
    with pytest.raises(InvalidInput) as caught:
        Trainer(make_run(world / GRIDS, tmp_path / "a", 1, **changes))
    assert str(caught.value) == (
        f"{world / GRIDS}: records of grids with encoder.trainable from_block_4, expected records "
        "of images; make them with `captionbeam preprocess … --content images`, or take "
        "encoder.trainable none"
    )
    changes = {"encoder.trainable": "none"}
    with pytest.raises(InvalidInput) as caught:
        Trainer(make_run(world / IMAGES, tmp_path / "a", 1, **changes))
    assert str(caught.value) == (
        f"{world / IMAGES}: records of images with encoder.trainable none, expected one of "
        "from_block_2, from_block_3, from_block_4, from_block_5; to train on grids of a frozen "
        "encoder, run `captionbeam preprocess` without --content images"
    )
    assert not (tmp_path / "a").exists()


# What follows trains a ResNet50.


@dataclass(frozen=True)
class Fitted:
    """A captioner trained on grids, and two that went on from it for as many steps.

    Attributes:
      root: of the MODEL_DIRs.
      frozen: run that went on with grids.
      tuned: run that fine-tuned the encoder.
    """

    root: Path
    frozen: Run
    tuned: Run

    @cached_property
    def trained(self) -> Trained:
        """The tuned model."""
        return load_trained(self.tuned.model_dir)

    @property
    def encoder(self) -> Encoder:
        """Of the tuned model."""
        assert self.trained.encoder is not None
        return self.trained.encoder


# The captioner's, so low that what is gained comes from the encoder.
RATE, STEPS = 1e-7, 6


@pytest.fixture(scope="module", name="fitted")
def fixture_fitted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    root = tmp_path_factory.mktemp("models")
    first = make_run(world / GRIDS, root / "first", 40, **ALL)
    fit(first)
    rates: dict[str, Any] = {**ALL, "training.learning_rate": RATE}
    frozen, tuned = (
        make_run(world / content, root / name, STEPS, first.model_dir, **rates)
        for content, name in ((GRIDS, "frozen"), (IMAGES, "tuned"))
    )
    for run in (frozen, tuned):
        # What training ends with is the best.
        with pytest.MonkeyPatch.context() as patch:
            validate_as(patch, 1.0, 2.0)
            fit(run)
    return Fitted(root, frozen, tuned)


@pytest.mark.slow
def test_training_changes_the_layers_asked_for_and_leaves_the_others_bit_for_bit(
    fitted: Fitted, encoder: Encoder
) -> None:
    before, after = encoder_weights(encoder), encoder_weights(fitted.encoder)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if is_trained(path, 5)}
    # Adam moves a weight by about its rate a step: the encoder's, not the captioner's.
    for path in changed:
        most = float(np.abs(after[path] - before[path]).max())
        assert 2 * STEPS * RATE < most < 1.1 * STEPS * ENCODER_RATE, path


@pytest.mark.slow
def test_it_learns_more_than_a_frozen_one_from_the_same_start(fitted: Fitted) -> None:
    frozen, tuned = (history(run)[-1] for run in (fitted.frozen, fitted.tuned))
    assert frozen["step"] == tuned["step"] == STEPS
    assert tuned["loss"] < frozen["loss"] - 5e-4


@pytest.mark.slow
def test_the_exported_model_says_of_image_bytes_what_evaluate_said_of_records(
    fitted: Fitted, encoder: Encoder
) -> None:
    name_dir = fitted.root / "models" / "tuned"
    given = ["--model_dir", str(fitted.tuned.model_dir), "--output", str(name_dir)]
    assert captionbeam.main(["export", *given]) == 0
    report = evaluate(fitted.tuned.records, [fitted.tuned.model_dir], "val", None)
    rows = {row["key"]: row for row in report["captions"]}
    assert len({row["caption"] for row in rows.values()}) > 2
    serve = tf.saved_model.load(str(name_dir / "1")).signatures[contract.SERVING_DEFAULT]
    pictures = [photograph(index) for index in range(len(tiny.CAPTIONS))]
    answer = serve(**{contract.IMAGE_BYTES: tf.constant(pictures)})
    # The encoder with which it began gives other scores.
    prepared = prepare_batch(tf.constant(pictures), ENCODER.image_size)
    parts = fitted.trained.captioner, fitted.trained.vocabulary, fitted.trained.config.search
    base = search_captions(*parts, tf.cast(encoder(*prepared), tf.float16)).log_prob[:, 0]
    for index in range(len(pictures)):
        row = rows[f"image-{index}.jpg"]
        assert answer[contract.CAPTION][index].numpy().decode() == row["caption"]
        assert float(answer[contract.LOG_PROB][index]) == pytest.approx(row["log_prob"], abs=1e-5)
    wanted = [rows[f"image-{index}.jpg"]["log_prob"] for index in range(len(pictures))]
    assert float(np.abs(base - wanted).max()) > 1e-4
    asset = Manifest.load(name_dir / "1" / "assets")
    assert asset.encoder["digest"] == fitted.encoder.digest != encoder.digest
    assert asset.encoder["weights"] == "fine-tuned from random:0"
    assert captionbeam.main(["export", *given, "--encoder_weights", "random:0"]) == 2


@pytest.mark.slow
def test_a_module_of_another_encoder_than_its_manifest_names_is_not_published(
    fitted: Fitted, encoder: Encoder, tmp_path: Path
) -> None:
    module = CaptionModule(fitted.trained, encoder)
    module.manifest = fitted.trained.manifest
    saved_model.write(module, fitted.tuned.model_dir, tmp_path / "v", "tuned")
    with pytest.raises(CheckFailed, match=r"the manifest names encoder \w{8}, the graph holds \w"):
        verify(tmp_path / "v", fitted.trained, fitted.encoder)


@pytest.mark.slow
def test_it_looks_at_no_other_grids_than_its_own(fitted: Fitted) -> None:
    tuned, grids = fitted.tuned, fitted.frozen.records
    with pytest.raises(RecordsMismatch) as caught:
        evaluate(grids, [tuned.model_dir], "val", None)
    expected = f"{grids}: records of grids, the model was trained on images; preprocess with "
    assert str(caught.value) == f"{expected}--content images"
    with pytest.raises(RecordsMismatch, match="records of images, the model was trained on grids"):
        evaluate(tuned.records, [fitted.frozen.model_dir], "val", None)
    with pytest.raises(RecordsMismatch, match="its encoder is fine-tuned, so that no other model"):
        evaluate(tuned.records, [tuned.model_dir] * 2, "val", None)
    with pytest.raises(RecordsMismatch, match="--records: records of grids, the model was trained"):
        fit(make_run(grids, fitted.root / "third", 1, tuned.model_dir))


@pytest.mark.slow
def test_a_third_phase_begins_with_the_tuned_encoder(fitted: Fitted) -> None:
    run = make_run(fitted.tuned.records, fitted.root / "next", 1, fitted.tuned.model_dir)
    trainer = Trainer(run)
    trainer._begin()
    assert trainer.encoder is not None
    for path, weight in encoder_weights(fitted.encoder).items():
        np.testing.assert_array_equal(trainer.encoder.weights[path], weight)
    for one, other in zip(trainer.captioner.weights, fitted.trained.captioner.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.slow
def test_self_critical_training_reaches_the_encoder_too(fitted: Fitted) -> None:
    changes: dict[str, Any] = {"stage": "self_critical", "samples": 2}
    run = make_run(
        fitted.tuned.records, fitted.root / "praised", 1, fitted.tuned.model_dir, **changes
    )
    trainer = fit(run)
    assert trainer.encoder is not None
    before = encoder_weights(fitted.encoder)
    after = {path: weight.numpy() for path, weight in trainer.encoder.weights.items()}
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if is_trained(path, 5)}


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(captionbeam.__file__).parent,
        timeout=600,
    )


FOUR_STEPS = """
import sys
from pathlib import Path
import numpy as np
from model.validation import metrics
from tests.fine_tuning_fixtures import all_kept, fit, make_run
from tests.trainer_fixtures import EVERYTHING, send_in_step

scores = iter((1.0, 2.0))
records, model_dir = map(Path, sys.argv[1:3])
for number in sys.argv[3:]:
    send_in_step(3, int(number))
# Whatever comes last is the best.
metrics.score = lambda captions, _: {"cider": next(scores)}
trainer = fit(make_run(records, model_dir, 4, **{**dict(EVERYTHING), "checkpoint_steps": 2}))
np.savez(model_dir / "kept.npz", *all_kept(trainer))
with trainer.averages.applied():
    np.savez(model_dir / "averaged.npz", *(w.numpy() for w in trainer.encoder.weights.values()))
"""


def arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as kept:
        return [kept[name] for name in kept.files]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_weights_of_an_undisturbed_one(
    world: Path, tmp_path: Path
) -> None:
    """In processes of their own, as users go on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    killed = run_python(FOUR_STEPS, world / IMAGES, parts, int(signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert checkpoint_steps(parts) == [2]
    for model_dir in (whole, parts):
        done = run_python(FOUR_STEPS, world / IMAGES, model_dir)
        assert done.returncode == 0, done.stderr[-2000:]
    expected, found = arrays(whole / "kept.npz"), arrays(parts / "kept.npz")
    assert len(expected) == len(found) > 400
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert history(make_run(world / IMAGES, parts, 4)) == history(
        make_run(world / IMAGES, whole, 4)
    )
    # Validation looks through the averages, and they are what is kept as the best.
    best = load_trained(parts).encoder
    assert best is not None
    kept_as_best = encoder_weights(best)
    for path, averaged, weight in zip(
        kept_as_best,
        arrays(parts / "averaged.npz"),
        found[-len(kept_as_best) :],
        strict=True,
    ):
        assert np.array_equal(averaged, weight) is not is_trained(path, 5)
        np.testing.assert_array_equal(kept_as_best[path], averaged)


@pytest.mark.slow
def test_no_more_than_two_terms_are_added_at_once(world: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(EVERYTHING)
    check_sums(Trainer(make_run(world / IMAGES, tmp_path / "model", 1, **settings)))


TWO_REPLICAS = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
logical = tf.config.LogicalDeviceConfiguration
tf.config.set_logical_device_configuration(cpu, [logical(), logical()])
from model.strategies import make_strategy
from tests.fine_tuning_fixtures import CLIPPED, all_kept, fit, make_run

records, root = map(Path, sys.argv[1:])
strategy = make_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2
trainer = fit(replace(make_run(records, root / "two", 4, **CLIPPED), strategy=strategy))
np.savez(root / "two.npz", *all_kept(trainer))
"""


@pytest.mark.slow
def test_two_replicas_train_the_weights_of_one(world: Path, tmp_path: Path) -> None:
    one = all_kept(fit(make_run(world / IMAGES, tmp_path / "one", 4, **CLIPPED)))
    two = run_python(TWO_REPLICAS, world / IMAGES, tmp_path)
    assert two.returncode == 0, two.stderr[-2000:]
    with np.load(tmp_path / "two.npz") as arrays:
        assert len(arrays.files) == len(one)
        for name, expected in zip(arrays.files, one, strict=True):
            # Gradients are added in another order.
            np.testing.assert_allclose(arrays[name], expected, atol=1e-5, rtol=0)
