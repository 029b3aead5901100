"""MODEL_DIR: what a training run keeps, and how a trained captioner is loaded from it."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from model import resnet50
from model.captioner import Captioner
from model.compatibility import (
    check_digest,
    check_fingerprint,
    check_same_config,
    check_same_grids,
    check_same_records,
)
from model.config import CONFIG_FILE, Config
from model.directories import make_directory
from model.encoder import Encoder, EncoderSettings
from model.errors import InvalidInput, RecordsMismatch
from model.fine_tuning import NetworkWeights
from model.records import MANIFEST_FILE, VOCABULARY_FILE, Manifest
from model.schedules import Plateau
from model.training_config import TrainingConfig
from model.training_step import Fitted
from model.vocabulary import Vocabulary

CHECKPOINTS_DIR = "checkpoints"
BEST_DIR = "best"
# The newest may be cut short by a full disk; the one before it is then still there.
_KEPT = 3
# What TensorFlow raises for a file cut short or weights of another shape.
_DAMAGED = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Trained:
    """A captioner with all that belongs to it.

    Attributes:
      captioner: with its best weights.
      vocabulary: of the captioner.
      config: it was trained with.
      manifest: of the records it was trained on.
      step: at which its weights were the best.
      encoder: its own, where it was fine-tuned; else `load_encoder` loads the records'.
    """

    captioner: Captioner
    vocabulary: Vocabulary
    config: Config
    manifest: Manifest
    step: int
    encoder: Encoder | None = None


class Progress(tf.Module):
    """How far a run is; part of its checkpoints.

    Args:
      vocabulary_digest: of the vocabulary that the weights belong to.
      config: of the training.
    """

    def __init__(self, vocabulary_digest: str, config: TrainingConfig) -> None:
        super().__init__()
        self.plateau = Plateau(config)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_score = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.vocabulary_digest = tf.Variable(vocabulary_digest, trainable=False)


class Checkpoints:
    """Writes and reads a run's checkpoints; a half-written one is never taken for a whole.

    Args:
      model_dir: MODEL_DIR.
      fitted: weights, their averages, the optimiser's state.
      progress: of the run.
    """

    def __init__(self, model_dir: Path, fitted: Fitted, progress: Progress) -> None:
        parts = {name: part for name, part in vars(fitted).items() if part is not None}
        everything = tf.train.Checkpoint(**parts, progress=progress)
        seen = {name: parts[name] for name in ("captioner", "encoder") if name in parts}
        self._latest = tf.train.CheckpointManager(
            everything,
            str(model_dir / CHECKPOINTS_DIR),
            max_to_keep=_KEPT,
            step_counter=progress.step,
        )
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(**seen, progress=progress),
            str(model_dir / BEST_DIR),
            max_to_keep=1,
            step_counter=progress.step,
        )

    def save(self, step: int) -> None:
        """Keep everything that a resumed run needs."""
        self._latest.save(checkpoint_number=step)

    def save_best(self, step: int) -> None:
        """Keep the weights as the best so far."""
        self._best.save(checkpoint_number=step)

    def restore(self, log: Callable[[str], None]) -> bool:
        """Go on from the newest checkpoint that can be read; False when there is none at all.

        Args:
          log: told of each that cannot be read.

        Raises:
          InvalidInput: there are checkpoints, and none can be read.
        """
        paths = self._latest.checkpoints
        for path in reversed(paths):
            try:
                self._latest.checkpoint.restore(path).assert_existing_objects_matched()
            except _DAMAGED as error:
                log(f"{path} cannot be read ({_first_line(error)}); trying the one before it")
            else:
                return True
        if paths:
            raise InvalidInput(
                f"{Path(paths[-1]).parent}: none of {len(paths)} checkpoints can be read; "
                "restore them from a copy, or take another --model_dir"
            )
        return False


def load_records(records_dir: Path) -> tuple[Manifest, Vocabulary]:
    """Manifest and vocabulary of a RECORDS directory; raises InvalidInput, RecordsMismatch."""
    manifest = Manifest.load(records_dir)
    check_fingerprint(manifest, str(records_dir))
    return manifest, load_vocabulary(records_dir, manifest)


def adopt_records(
    model_dir: Path,
    records_dir: Path,
    manifest: Manifest,
    config: Config,
    ignored: Sequence[str] = ("epochs",),
) -> None:
    """Make MODEL_DIR belong to these records and settings, or check that it does.

    Args:
      model_dir: MODEL_DIR; made when it is not there.
      records_dir: RECORDS.
      manifest: of RECORDS, checked by `load_records`.
      config: of the run.
      ignored: training settings that a resumed run may change.

    Raises:
      RecordsMismatch: the directory belongs to other records.
      InvalidInput: it was made with other settings.
    """
    if (model_dir / MANIFEST_FILE).exists():
        begun = Manifest.load(model_dir)
        check_same_grids(begun, manifest, str(records_dir))
        check_digest(load_vocabulary(model_dir), manifest.vocabulary["digest"], str(model_dir))
        check_same_records(begun, manifest, str(records_dir))
        check_same_config(Config.load(model_dir / CONFIG_FILE), config, model_dir, ignored)
        return
    make_directory(model_dir)
    (model_dir / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    shutil.copyfile(records_dir / VOCABULARY_FILE, model_dir / VOCABULARY_FILE)
    # Last: its presence says that the directory was set up whole.
    shutil.copyfile(records_dir / MANIFEST_FILE, model_dir / MANIFEST_FILE)


def load_trained(model_dir: Path) -> Trained:
    """Load the best captioner of a MODEL_DIR.

    Raises:
      InvalidInput: nothing trained there.
      RecordsMismatch: the vocabulary is not the one it was trained with.
    """
    if not (model_dir / MANIFEST_FILE).is_file():
        raise InvalidInput(
            f"{model_dir}: no {MANIFEST_FILE}, expected a directory of `captionbeam train`"
        )
    manifest = Manifest.load(model_dir)
    check_fingerprint(manifest, str(model_dir))
    config = Config.load(model_dir / CONFIG_FILE)
    best = tf.train.latest_checkpoint(str(model_dir / BEST_DIR))
    if best is None:
        raise InvalidInput(
            f"{model_dir}: no checkpoint in {BEST_DIR}/, expected a trained model; "
            "run `captionbeam train` until its first validation"
        )
    try:
        saved = _saved_progress(best)
    except _DAMAGED as error:
        raise InvalidInput(f"{best}: cannot be read ({_first_line(error)})") from error
    vocabulary = load_vocabulary(model_dir)
    check_digest(vocabulary, saved["vocabulary_digest"].decode(), str(model_dir / VOCABULARY_FILE))
    captioner = Captioner(config.decoder, len(vocabulary), manifest.grid_shape)
    parts: dict[str, Any] = {"captioner": captioner}
    settings, network = _encoder_settings(manifest), None
    if config.encoder.is_trained:
        network = resnet50.architecture(settings.image_size, settings.precision)
        parts["encoder"] = NetworkWeights(network)
    try:
        status = tf.train.Checkpoint(**parts).restore(best)
        status.assert_existing_objects_matched().expect_partial()
    except _DAMAGED as error:
        raise InvalidInput(
            f"{best}: does not fit {CONFIG_FILE} or is damaged ({_first_line(error)})"
        ) from error
    encoder = network and Encoder(settings, network)
    return Trained(captioner, vocabulary, config, manifest, int(saved["step"]), encoder)


def load_encoder(manifest: Manifest, weights: str | None = None) -> Encoder:
    """Load the encoder that made a manifest's grids.

    Args:
      manifest: of the records or the model.
      weights: instead of the manifest's own, where a weights file was moved.

    Raises:
      RecordsMismatch: these weights are not the ones that made the grids.
    """
    settings = _encoder_settings(manifest, weights)
    encoder = Encoder(settings)
    expected = manifest.encoder["digest"]
    if encoder.digest != expected:
        raise RecordsMismatch(
            f"encoder weights {settings.weights}: digest {encoder.digest[:8]}, the records were "
            f"made with {expected[:8]}; pass the same weights as --encoder_weights"
        )
    return encoder


def _encoder_settings(manifest: Manifest, weights: str | None = None) -> EncoderSettings:
    # Whatever computed the records: a graph that is exported is TensorFlow's, in float32.
    return EncoderSettings(
        weights or manifest.encoder["weights"],
        manifest.image_size,
        manifest.grid_size,
        manifest.aspect,
    )


def load_vocabulary(directory: Path, manifest: Manifest | None = None) -> Vocabulary:
    """Read a directory's vocabulary, and check it against a manifest's digest."""
    vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
    if manifest is not None:
        check_digest(vocabulary, manifest.vocabulary["digest"], str(directory / VOCABULARY_FILE))
    return vocabulary


def _saved_progress(checkpoint: str) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(checkpoint)
    return {
        name: reader.get_tensor(f"progress/{name}/.ATTRIBUTES/VARIABLE_VALUE")
        for name in ("step", "vocabulary_digest")
    }


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
