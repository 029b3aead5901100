"""How good a captioner is while it is trained: its free-running captions and their CIDEr."""

from pathlib import Path
from typing import NamedTuple

from model import metrics
from model.dataset import Split
from model.decoding import CaptionWriter, Prediction, by_key
from model.errors import InvalidInput
from model.records import Manifest
from model.training_config import PLATEAU, TrainingConfig


def validation_split(records: Path, manifest: Manifest, config: TrainingConfig) -> Split | None:
    """The split that picks the best checkpoint; None where the records have none of that name.

    Raises:
      InvalidInput: it has no images, or there is none and the learning rate waits for its scores.
    """
    name = config.validation_split
    if name not in manifest.splits:
        if config.schedule == PLATEAU:
            raise InvalidInput(
                f"training.schedule {PLATEAU} without a split {name!r}, expected one to validate; "
                "name another with --set validation_split=NAME, or take another schedule"
            )
        return None
    split = Split(records, manifest, name)
    if split.num_images == 0:
        raise InvalidInput(
            f"validation split {name!r} has no images, expected at least one; name another with "
            "--set validation_split=NAME"
        )
    return split


class Validated(NamedTuple):
    """A split as the captioner tells of it: CIDEr-D, 0 to 10, and the captions."""

    cider: float
    predictions: list[Prediction]


def validate(writer: CaptionWriter, split: Split, config: TrainingConfig) -> Validated:
    """Caption a split and score it.

    Args:
      writer: of the captioner as it is now.
      split: to caption.
      config: batch size and number of images.
    """
    predictions = list(writer.predictions(split, config.batch_size, config.validation_images))
    return Validated(metrics.score(*by_key(predictions))["cider"], predictions)
