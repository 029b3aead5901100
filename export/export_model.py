"""Publish the best checkpoint as MODELS/NAME/VERSION, a SavedModel for TensorFlow Serving.

Image bytes in, captions out: decoding, ResNet50, beam search and detokenising all run
inside the graph. The directory is published, by one rename, only after its reloaded
captions equalled those in memory, in batches of every kind, and a process without our code
loaded it and said the same. Beside NAME lie models.config, batching_parameters.txt
and monitoring.config for the server.

  captionbeam export --model_dir MODEL --output MODELS/captioner
"""

import argparse
from pathlib import Path

from model.arguments import local_path
from model.directories import make_directory
from model.errors import InvalidInput
from model.startup import import_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam export`."""
    parser.add_argument("--model_dir", type=local_path, required=True, help="made by train")
    parser.add_argument("--output", type=local_path, required=True, help="MODELS/NAME")
    parser.add_argument(
        "--encoder_weights", help="where the encoder's weights file lies now, if it was moved"
    )


def run(args: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    if args.output.name.isdecimal():
        raise InvalidInput(
            f"--output {args.output}: a number would be taken for a version, expected MODELS/NAME"
        )
    make_directory(args.output)

    import_tensorflow()
    from export.module import CaptionModule
    from export.saved_model import publish
    from export.verify import verify
    from model.checkpoints import load_encoder, load_trained

    trained = load_trained(args.model_dir)
    if trained.encoder is not None and args.encoder_weights is not None:
        raise InvalidInput(
            f"--encoder_weights {args.encoder_weights}, but {args.model_dir} has an encoder of its "
            "own, fine-tuned with it; leave the flag out"
        )
    encoder = trained.encoder or load_encoder(trained.manifest, args.encoder_weights)
    module = CaptionModule(trained, encoder)

    def check(path: Path) -> None:
        found = verify(path, trained, encoder)
        print(
            f"verified: loads in {found.load_s:.1f} s, {found.peak_mib:,.0f} MiB at peak, "
            "without captionbeam's code"
        )

    version_dir = publish(module, args.model_dir, args.output, check)
    print(f"published {version_dir} (step {trained.step})")
    return 0
