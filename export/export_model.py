"""Publish the best checkpoint as MODELS/NAME/VERSION, a SavedModel for TensorFlow Serving.

Image bytes in, captions out: decoding, ResNet50, beam search and detokenising all run
inside the graph. The directory is published, by one rename, only after its reloaded
captions equalled those in memory, in batches of every kind, and a process without our code
loaded it and said the same. Beside NAME lie models.config and the other files that the server
is started with (docs/serving.md).

With --check, a published version is checked again, and nothing is written.

  captionbeam export --model_dir MODEL --output MODELS/captioner
  captionbeam export --check MODELS/captioner/3
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from model.arguments import local_path
from model.directories import make_directory
from model.errors import InvalidInput
from model.startup import import_tensorflow

if TYPE_CHECKING:
    from export.verify import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam export`."""
    parser.add_argument(
        "--model_dir",
        type=local_path,
        help="made by train; with --check, compare the version with it, too",
    )
    parser.add_argument("--output", type=local_path, metavar="MODELS/NAME", help="publish here")
    parser.add_argument(
        "--check",
        type=local_path,
        metavar="MODELS/NAME/VERSION",
        help="instead: check a published version again",
    )
    parser.add_argument(
        "--encoder_weights", help="where the encoder's weights file lies now, if it was moved"
    )


def run(args: argparse.Namespace) -> int:
    """Export or check; returns the exit code."""
    return _check(args) if args.check is not None else _export(args)


def _export(args: argparse.Namespace) -> int:
    missing = [flag for flag in ("model_dir", "output") if getattr(args, flag) is None]
    if missing:
        raise InvalidInput(
            f"no --{' and no --'.join(missing)}: expected --model_dir MODEL --output MODELS/NAME, "
            "or --check MODELS/NAME/VERSION alone"
        )
    if args.output.name.isdecimal():
        raise InvalidInput(
            f"--output {args.output}: a number would be taken for a version, expected MODELS/NAME"
        )
    make_directory(args.output)
    output = args.output.resolve()

    from export import models_config

    # Whatever is wrong with it must not show after minutes of work.
    models_config.read(output.parent)
    import_tensorflow()
    from export.module import CaptionModule
    from export.saved_model import publish
    from export.verify import verify_and_record

    source = _source(args.model_dir, args.encoder_weights)
    module = CaptionModule(source.trained, source.encoder)

    def check(path: Path) -> None:
        print(f"verified: {verify_and_record(path, source.trained, source.encoder)}")

    version_dir = publish(module, args.model_dir, output, check)
    print(f"published {args.output / version_dir.name} (step {source.trained.step})")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.output is not None:
        raise InvalidInput(
            f"--output {args.output} with --check, which writes nothing; leave it out"
        )
    if args.encoder_weights is not None and args.model_dir is None:
        raise InvalidInput(
            f"--encoder_weights {args.encoder_weights} with --check, which needs them for the "
            "model of --model_dir alone; give that too, or leave it out"
        )
    from export.versions import check_published

    version_dir = args.check.resolve()
    check_published(version_dir)
    import_tensorflow()
    from export.verify import recheck

    source = args.model_dir and _source(args.model_dir, args.encoder_weights)
    print(f"checked {args.check}: {recheck(version_dir, source)}")
    return 0


def _source(model_dir: Path, encoder_weights: str | None) -> "Source":
    from export.verify import Source
    from model.checkpoints import load_encoder, load_trained

    trained = load_trained(model_dir)
    if trained.encoder is not None and encoder_weights is not None:
        raise InvalidInput(
            f"--encoder_weights {encoder_weights}, but {model_dir} has an encoder of its "
            "own, fine-tuned with it; leave the flag out"
        )
    return Source(trained, trained.encoder or load_encoder(trained.manifest, encoder_weights))
