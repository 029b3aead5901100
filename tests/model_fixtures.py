"""Tiny models on the disk, trained or with weights that were drawn; imported by tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import captionbeam
from model.captioner import Captioner
from model.checkpoints import BEST_DIR, adopt_records, load_records
from model.config import Config
from model.records import Manifest
from tests import tiny

SIZES = (("embedding_size", 8), ("hidden_size", 8), ("attention_size", 8), ("max_length", 6))
STEPS_TO_KNOW = 120


def make_models(root: Path) -> Path:
    """A directory with tiny `records` and, of different sizes, the models `one` and `other`."""
    records = tiny.make_records(root / "records")
    make_model(records, root / "one")
    make_model(records, root / "other", ("hidden_size", 12), ("num_layers", 3), step=5)
    return root


def train_model(records: Path, model_dir: Path) -> Path:
    """A MODEL_DIR that knows a caption of each image by heart."""
    settings = dict(SIZES) | {"hidden_size": 16, "max_length": 12, "batch_size": 4}
    settings |= {"warmup_steps": 2, "validation_steps": STEPS_TO_KNOW}
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    flags += ["--set=dropout=0.0", "--set=learning_rate=1e-2", "--set=schedule=constant"]
    directories = ("--records", str(records), "--model_dir", str(model_dir))
    assert captionbeam.main(["train", *directories, *flags, f"--steps={STEPS_TO_KNOW}"]) == 0
    return model_dir


def make_model(
    records: Path,
    model_dir: Path,
    *changes: tuple[str, object],
    step: int = 3,
    end_bias: float = 0.0,
) -> Path:
    """A MODEL_DIR with random weights, drawn with the step as seed."""
    manifest, vocabulary = load_records(records)
    config = Config().updated([*SIZES, *changes])
    adopt_records(model_dir, records, manifest, config)
    keras.utils.set_random_seed(step)
    captioner = Captioner(config.decoder, len(vocabulary), manifest.grid_shape)
    # Fresh weights say the same of every image; scaled up, they do not.
    for variable in captioner.trainable_variables:
        variable.assign(variable * 4.0)
        if variable.path.endswith("output/bias"):
            variable.assign(variable + np.eye(len(vocabulary))[vocabulary.end_id] * end_bias)
    progress = tf.Module()
    progress.step = tf.Variable(step, dtype=tf.int64)
    progress.vocabulary_digest = tf.Variable(vocabulary.digest)
    best = tf.train.Checkpoint(captioner=captioner, progress=progress)
    tf.train.CheckpointManager(best, str(model_dir / BEST_DIR), max_to_keep=1).save(step)
    return model_dir


def edit_manifest(records: Path, **changes: Any) -> None:
    """Change fields of a manifest."""
    manifest = replace(Manifest.load(records), **changes)
    (records / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
