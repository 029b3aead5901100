"""What a second phase of training begins with: the best weights of an earlier MODEL_DIR."""

from dataclasses import replace
from pathlib import Path

from model.captioner import Captioner
from model.checkpoints import load_trained
from model.compatibility import check_digest, check_same_grids
from model.errors import InvalidInput
from model.records import Manifest
from model.vocabulary import Vocabulary


def begin_with(
    captioner: Captioner, vocabulary: Vocabulary, manifest: Manifest, model_dir: Path
) -> None:
    """Give a captioner another one's weights, its statistics of the grids included.

    Args:
      captioner: to change.
      vocabulary: of the captioner.
      manifest: of the records it will be trained on.
      model_dir: of the run that trained the other one.

    Raises:
      InvalidInput: nothing trained there, or a decoder of another size.
      RecordsMismatch: it writes other words or looks at other grids.
    """
    trained = load_trained(model_dir)
    check_digest(trained.vocabulary, vocabulary.digest, f"--init_from {model_dir}")
    check_same_grids(trained.manifest, manifest, "--records")
    there = replace(trained.config.decoder, dropout=captioner.config.dropout)
    for name, value in vars(captioner.config).items():
        if getattr(there, name) != value:
            raise InvalidInput(
                f"--init_from {model_dir}: decoder.{name} is {getattr(there, name)} there, {value} "
                f"in this run; --set decoder.{name}={getattr(there, name)}"
            )
    for weight, other in zip(captioner.weights, trained.captioner.weights, strict=True):
        weight.assign(other)
