"""Turn captions and photographs into TFRecords of ResNet50 grids, or images, and tokens.

A source is a file of captions and the place of its images, --split NAME=FILE:IMAGES; sources
of one NAME join. FILE is COCO captions JSON, a token file of Flickr8k or Flickr30k, a CSV or
TSV with the columns image, caption and, where there is one, image_id, or JSONL with such
fields. Karpathy's JSON, --karpathy FILE:IMAGES, brings its own splits. IMAGES is a directory, a
bucket prefix, or a plain .tar file or a glob of them. No image may be in two splits.

Started again with the same flags, it goes on where it stopped. Beam's own flags may follow,
such as --direct_running_mode=multi_processing --direct_num_workers=2 or
--runner=DataflowRunner. RECORDS gets SPLIT-*.tfrecord, vocabulary.json, failures.jsonl
(one row for every image or caption that was left out) and, last, manifest.json.

    captionbeam preprocess --check RECORDS
    captionbeam preprocess --check RECORDS --repair

The first verifies every shard, the second makes again what is faulty: RECORDS knows how, and
only the photographs must still be there.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.errors import InvalidInput
from model.startup import import_tensorflow
from pipelines import source_arguments
from pipelines.balance import check_failure_rate, equation

if TYPE_CHECKING:
    from model.records import Manifest
    from pipelines.records_job import Outcome, PreprocessSettings

# Omitted ones take the defaults of EncoderSettings and PreprocessSettings, which are too heavy to
# import for a help text; a test compares the numbers.
_OPTIONS: dict[str, tuple[type, str]] = {
    "image_size": (int, "pixels a side of the encoder's input (224)"),
    "grid_size": (int, "cells a side (7)"),
    "aspect": (str, "squash photographs to the encoder's square, or keep their aspect (squash)"),
    "encoder_weights": (
        str,
        "imagenet (downloaded by Keras), random:SEED or a weights file of ResNet50 without top "
        "(imagenet)",
    ),
    "encoder_runtime": (str, "tensorflow, openvino or auto: openvino where it is (tensorflow)"),
    "encoder_precision": (str, "float32, mixed_float16 or auto: mixed on a GPU (auto)"),
    "content": (str, "grids, or images to fine-tune the encoder with (grids)"),
    "compression": (str, "of the grids: none or zlib, without loss (none)"),
    "min_word_count": (int, "a word seen less often in train becomes <unk> (5)"),
    "max_words": (int, "longer captions are cut (20)"),
    "shard_size": (int, "images a shard, about (1024)"),
    "read_threads": (int, "images a worker reads and decodes at once (twice the cores, at most 8)"),
}
# Those that are fields of PreprocessSettings by the same name.
_FIELDS = ("min_word_count", "max_words", "content", "compression", "shard_size", "read_threads")

# What may stand beside --check; all else is in the plan that RECORDS holds.
_WITH_CHECK = {"check", "repair", "max_failure_rate", "beam_args"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's flags."""
    source_arguments.add(parser)
    parser.add_argument("--output", metavar="RECORDS", help="directory or bucket")
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--flip_copies",
        action="store_true",
        help="add the mirror image of every training image as a record of its own",
    )
    parser.add_argument(
        "--max_failure_rate",
        type=float,
        default=0.1,
        help="share of failed images above which the exit code is 1 (%(default)s)",
    )
    parser.add_argument(
        "--check", metavar="RECORDS", help="verify what was made; no other flag is needed"
    )
    parser.add_argument(
        "--repair", action="store_true", help="with --check: make again what is faulty"
    )


def run(args: argparse.Namespace) -> int:
    """Preprocess, then report; 1 when too many images failed. Or check what was made."""
    if not 0 <= args.max_failure_rate <= 1:
        raise InvalidInput(f"max_failure_rate {args.max_failure_rate}, expected 0 to 1")
    if args.check is not None or args.repair:
        return _check(args)
    if not args.output:
        raise InvalidInput("no --output, expected --output RECORDS, or --check RECORDS")
    # Beam and TensorFlow take seconds to import, so that help and wrong flags come first.
    import_tensorflow()
    from pipelines.records_job import preprocess

    outcome = preprocess(_settings(args), args.beam_args)
    _report(outcome, args.output)
    _check_failures(outcome.manifest, args.output, args.max_failure_rate)
    return 0


def _check(args: argparse.Namespace) -> int:
    others = {*vars(args)} - _WITH_CHECK
    if args.check is None:
        raise InvalidInput("--repair, expected --check RECORDS with it")
    if given := [name for name in others if getattr(args, name) not in (None, False, [])]:
        raise InvalidInput(
            f"--check and --{min(given)}, expected --check RECORDS alone or with --repair"
        )
    import_tensorflow()
    from pipelines.check_command import check, repair
    from pipelines.storage import absolute_path

    output = absolute_path(args.check)
    if not args.repair:
        check(output, args.beam_args)
    elif (manifest := repair(output, args.beam_args)) is not None:
        _check_failures(manifest, args.check, args.max_failure_rate)
    return 0


def _check_failures(manifest: "Manifest", output: str, max_failure_rate: float) -> None:
    from model.records import FAILURES_FILE

    ledger = manifest.ledger
    rows = f"{output.rstrip('/')}/{FAILURES_FILE}"
    remedy = "take another --output"
    check_failure_rate(ledger["written"], ledger["failed"], max_failure_rate, rows, remedy)


def _settings(args: argparse.Namespace) -> "PreprocessSettings":
    from model.encoder import EncoderSettings
    from model.resnet50 import IMAGENET, RANDOM_PREFIX
    from model.runtimes import resolve
    from pipelines.records_job import PreprocessSettings
    from pipelines.storage import absolute_path

    sources, selection = source_arguments.read_sources(args)
    encoder = _given(args, weights="encoder_weights", image_size="", grid_size="", aspect="")
    weights = encoder.get("weights", IMAGENET)
    if weights != IMAGENET and not weights.startswith(RANDOM_PREFIX):
        # A repair may be started in another directory.
        encoder["weights"] = absolute_path(weights)
    asked = _given(args, runtime="encoder_runtime", precision="encoder_precision")
    return PreprocessSettings(
        sources=sources,
        output=absolute_path(args.output),
        selection=selection,
        encoder=EncoderSettings(**{**encoder, **resolve(**asked)}),
        flip_copies=args.flip_copies,
        vocabulary=source_arguments.read_vocabulary(args),
        **_given(args, **dict.fromkeys(_FIELDS, "")),
    )


def _given(args: argparse.Namespace, **fields: str) -> dict[str, Any]:
    """Settings fields whose flag, of the same name unless another is given, was passed."""
    values = {field: getattr(args, flag or field) for field, flag in fields.items()}
    return {field: value for field, value in values.items() if value is not None}


def _report(outcome: "Outcome", output: str) -> None:
    manifest = outcome.manifest
    if outcome.was_complete:
        print(f"{output} is complete already; nothing was done")
    print(f"{'split':12} {'images':>8} {'captions':>9} {'shards':>7}")
    for split, shards in manifest.splits.items():
        images = sum(shard.records for shard in shards)
        captions = sum(shard.captions for shard in shards)
        print(f"{split:12} {images:8} {captions:9} {len(shards):7}")
    print(f"images:   {_equation(manifest.ledger)}")
    cut = manifest.caption_ledger["cut"]
    print(f"captions: {_equation(manifest.caption_ledger)}")
    print(f"vocabulary: {manifest.vocabulary['size']} words; {cut} captions cut to ", end="")
    print(f"{manifest.max_words} words")
    print(f"records: {output}")


def _equation(ledger: Mapping[str, Any]) -> str:
    inputs, written = ledger["inputs"], ledger["written"]
    return equation(inputs, "written", written, ledger["failed"], ledger["skipped"])
