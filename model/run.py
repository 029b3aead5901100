"""What a training run is asked to do."""

from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from model.config import Config
from model.errors import InvalidInput
from model.initial_weights import check_beginning
from model.training_config import SELF_CRITICAL


@dataclass(frozen=True)
class Run:
    """What is to be trained, on what, for how long.

    Attributes:
      records: RECORDS.
      model_dir: MODEL_DIR.
      config: settings.
      strategy: of tf.distribute.
      steps: in all, over every resumed run; None is config.training.epochs.
      init_from: MODEL_DIR of an earlier run, whose best weights this one begins with; None is
        new weights. A run that goes on does not look at it.
      images: directory of the validation split's photographs, for pictures in TensorBoard; None
        draws attention without them.
      encoder_weights: of an encoder to be fine-tuned, where the file that the records name was
        moved.
    """

    records: Path
    model_dir: Path
    config: Config
    strategy: tf.distribute.Strategy
    steps: int | None = None
    init_from: Path | None = None
    images: Path | None = None
    encoder_weights: str | None = None


def check_first(run: Run) -> None:
    """Refuse a run that cannot begin, while its MODEL_DIR is still untouched; InvalidInput."""
    if run.init_from is not None:
        check_beginning(run.config, run.init_from)
    elif run.config.training.stage == SELF_CRITICAL:
        raise InvalidInput(
            f"training.stage {SELF_CRITICAL} without --init_from, expected the MODEL_DIR of a run "
            "with cross-entropy; chance alone writes nothing to be rewarded"
        )
