"""What a second phase of training begins with: the best weights of an earlier MODEL_DIR."""

import json
from dataclasses import replace
from pathlib import Path

from model.captioner import Captioner
from model.checkpoints import load_trained
from model.compatibility import check_digest, check_same_grids
from model.config import CONFIG_FILE, Config
from model.errors import InvalidInput
from model.fine_tuning import TunedEncoder
from model.records import Manifest
from model.vocabulary import Vocabulary


def begin_with(
    captioner: Captioner,
    vocabulary: Vocabulary,
    manifest: Manifest,
    model_dir: Path,
    encoder: TunedEncoder | None = None,
) -> None:
    """Give a captioner another one's weights, its statistics of the grids included.

    An encoder that is to be fine-tuned gets those of the other one, if that was fine-tuned, too;
    else it stays the one with which the records' grids are made.

    Args:
      captioner: to change; of a config that `check_beginning` let pass.
      vocabulary: of the captioner.
      manifest: of the records it will be trained on.
      model_dir: of the run that trained the other one.
      encoder: to change, where it is to be fine-tuned.

    Raises:
      InvalidInput: nothing trained there.
      RecordsMismatch: it writes other words or looks at other grids.
    """
    trained = load_trained(model_dir)
    check_digest(trained.vocabulary, vocabulary.digest, f"--init_from {model_dir}")
    # Where an encoder will look at images, the other one may have looked at grids.
    content = trained.manifest.content if encoder is None else manifest.content
    check_same_grids(replace(trained.manifest, content=content), manifest, "--records")
    for weight, other in zip(captioner.weights, trained.captioner.weights, strict=True):
        weight.assign(other)
    if encoder is not None and trained.encoder is not None:
        encoder.assign(trained.encoder.network)


def check_beginning(config: Config, model_dir: Path) -> None:
    """Refuse, before anything is written, a MODEL_DIR whose decoder is of another size.

    Args:
      config: of the run that is to begin with its weights.
      model_dir: of the run that trained them.

    Raises:
      InvalidInput: nothing trained there, or a decoder of another size.
    """
    path = model_dir / CONFIG_FILE
    if not path.is_file():
        raise InvalidInput(
            f"--init_from {model_dir}: no {CONFIG_FILE}, expected a directory of "
            "`captionbeam train`"
        )
    there = Config.load(path).decoder
    # Dropout has no weights.
    differ = {
        name: value
        for name, value in vars(there).items()
        if name != "dropout" and value != getattr(config.decoder, name)
    }
    if differ:
        flags = " ".join(f"--set decoder.{name}={json.dumps(differ[name])}" for name in differ)
        raise InvalidInput(
            f"--init_from {model_dir}: its decoder has other sizes than this run's, expected the "
            f"same; add {flags}"
        )
