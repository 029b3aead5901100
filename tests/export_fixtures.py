"""A small model, exported, and pictures that it tells apart."""

import dataclasses
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from export import saved_model
from export.module import CaptionModule
from export.verify import Verified, verify_and_record
from model.captioner import Captioner
from model.checkpoints import BEST_DIR, Progress, Trained
from model.config import CONFIG_FILE, Config
from model.encoder import Encoder, EncoderSettings
from model.preprocessing import fingerprint
from model.records import Manifest
from model.vocabulary import Vocabulary
from serving import contract
from tests import tiny

NAME = "tiny"
ENCODER_SETTINGS = EncoderSettings("random:0", image_size=64, grid_size=2)
SIZES = {"hidden_size": 16, "embedding_size": 8, "attention_size": 8, "max_length": 6}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A published version and what it was made from."""

    trained: Trained
    encoder: Encoder
    module: CaptionModule
    model_dir: Path
    version_dir: Path
    verified: Verified

    @cached_property
    def loaded(self) -> Any:
        return tf.saved_model.load(str(self.version_dir))

    def call(self, signature: str, images: list[bytes]) -> dict[str, np.ndarray]:
        serve = self.loaded.signatures[signature]
        answer = serve(**{contract.IMAGE_BYTES: tf.constant(images)})
        return {name: value.numpy() for name, value in answer.items()}


def export(
    root: Path,
    settings: EncoderSettings = ENCODER_SETTINGS,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Exported:
    """Publish an untrained model whose captions differ: MODELS/tiny/1 in `root / "models"`.

    Args:
      root: an empty directory.
      settings: of the encoder.
      changes: of the configuration.
    """
    trained, encoder, model_dir = make(root, settings, changes)
    module = CaptionModule(trained, encoder)
    verified: list[Verified] = []
    version_dir = saved_model.publish(
        module,
        model_dir,
        root / "models" / NAME,
        lambda path: verified.append(verify_and_record(path, trained, encoder)),
    )
    return Exported(trained, encoder, module, model_dir, version_dir, verified[0])


def export_unverified(root: Path, settings: EncoderSettings = ENCODER_SETTINGS) -> Path:
    """As `export`, in half the time; MODELS/tiny."""
    trained, encoder, model_dir = make(root, settings, {})
    module, name_dir = CaptionModule(trained, encoder), root / "models" / NAME
    saved_model.publish(module, model_dir, name_dir, lambda path: None)  # noqa: ARG005
    return name_dir


def make(
    root: Path, settings: EncoderSettings, changes: Mapping[str, Any]
) -> tuple[Trained, Encoder, Path]:
    """What `export` exports, and its MODEL_DIR."""
    model_dir = tiny.make_records(root / "model")
    encoder = Encoder(settings)
    manifest = dataclasses.replace(
        Manifest.load(model_dir),
        grid_shape=encoder.grid_shape,
        preprocessing=settings.choices,
        fingerprint=fingerprint(settings.choices),
        encoder={"name": "resnet50", "weights": "random:0", "digest": encoder.digest},
    )
    (model_dir / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    config = Config().updated({**SIZES, "block_ngrams": 1, **changes}.items())
    keras.utils.set_random_seed(1)
    captioner = Captioner(config.decoder, len(vocabulary), manifest.grid_shape)
    # Untrained weights say the same of every image; scaled up, they do not.
    for variable in captioner.trainable_variables:
        variable.assign(variable * 4.0)
    own = encoder if config.encoder.is_trained else None
    return Trained(captioner, vocabulary, config, manifest, 1, own), encoder, model_dir


def photographs() -> list[bytes]:
    """Pictures whose captions differ under the fixture's model."""
    generator = np.random.default_rng(5)
    pictures = []
    for _ in range(7):
        block = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(block).resize((90, 70), Image.Resampling.NEAREST).save(file, "JPEG")
        pictures.append(file.getvalue())
    return pictures


def save_model_dir(exported: Exported) -> None:
    """Make its model_dir one that `captionbeam export` takes."""
    trained = exported.trained
    (exported.model_dir / CONFIG_FILE).write_text(trained.config.to_json(), encoding="utf-8")
    progress = Progress(trained.vocabulary.digest, trained.config.training)
    progress.step.assign(trained.step)
    best = tf.train.Checkpoint(captioner=trained.captioner, progress=progress)
    directory = str(exported.model_dir / BEST_DIR)
    tf.train.CheckpointManager(best, directory, max_to_keep=1).save(checkpoint_number=trained.step)
