"""Records of the same photographs as images and as grids, and runs that fine-tune on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.config import Config
from model.encoder import Encoder, EncoderSettings
from model.preprocessing import SQUASH, choices, fingerprint, prepare_batch
from model.records import GRIDS, IMAGES
from model.run import Run
from model.trainer import Trainer
from tests import tiny
from tests.preprocess_fixtures import jpeg
from tests.trainer_fixtures import SETTINGS, kept, silent

ENCODER = EncoderSettings("random:0", 64, 2)
# So low that a few steps go straight down.
ENCODER_RATE = 1e-6
TUNED = {"encoder.trainable": "from_block_5", "encoder.learning_rate": ENCODER_RATE}
# All images in each step, whose losses can so be compared.
ALL: dict[str, Any] = {"batch_size": len(tiny.CAPTIONS), "warmup_steps": 0, "dropout": 0.0}
# Clipping is active and lengths are uneven: both tell a wrong order of sum and clip.
CLIPPED: dict[str, Any] = {"dropout": 0.0, "clip_norm": 0.1, "encoder.learning_rate": 1e-4}


def photograph(index: int) -> bytes:
    """That of the captions at this place; none is square."""
    return jpeg(index, (96, 80))


def make_records(root: Path, encoder: Encoder) -> None:
    """Write ROOT/images and ROOT/grids: a photograph for each of tiny's captions, in two splits."""
    pictures = [photograph(index) for index in range(len(tiny.CAPTIONS))]
    prepared = prepare_batch(tf.constant(pictures), ENCODER.image_size)
    grids = tf.cast(encoder(*prepared), tf.float16).numpy()
    rows = tiny.make_rows(tiny.CAPTIONS, seed=0)
    made = choices(ENCODER.image_size, ENCODER.grid_size, SQUASH)
    contents: dict[str, list[dict[str, Any]]] = {
        GRIDS: [{"grid": grid} for grid in grids],
        IMAGES: [{"grid": None, "image": picture} for picture in pictures],
    }
    for content, changes in contents.items():
        (root / content).mkdir()
        changed = [replace(row, **change) for row, change in zip(rows, changes, strict=True)]
        tiny.write_papers(
            root / content,
            {name: tiny.write_split(root / content, name, changed, 1) for name in ("train", "val")},
            grid_shape=encoder.grid_shape,
            encoder={"name": "resnet50", "weights": ENCODER.weights, "digest": encoder.digest},
            preprocessing=made,
            fingerprint=fingerprint(made),
            content=content,
        )


def make_run(
    records: Path, model_dir: Path, steps: int, init_from: Path | None = None, **changes: object
) -> Run:
    """A run of tiny settings, validated at its end; fine-tuned where `records` are of images."""
    settings = {**dict(SETTINGS), **(TUNED if records.name == IMAGES else {})}
    settings |= {"validation_steps": steps, "checkpoint_steps": steps, **changes}
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    config = Config().updated(settings.items())
    return Run(records, model_dir, config, strategy, steps, init_from)


def fit(run: Run) -> Trainer:
    """Train to the end."""
    trainer = Trainer(run)
    trainer.fit(silent)
    return trainer


def encoder_weights(encoder: Encoder) -> dict[str, np.ndarray]:
    """Copies of all its weights by path."""
    return {weight.path: np.array(weight.numpy()) for weight in encoder.network.weights}


def all_kept(trainer: Trainer) -> list[np.ndarray]:
    """All that a checkpoint must hold."""
    assert trainer.encoder is not None
    return [*kept(trainer), *(weight.numpy() for weight in trainer.encoder.weights.values())]
