"""Flags of preprocessing that name sources and a vocabulary; imports Beam only to read them."""

import argparse
from typing import TYPE_CHECKING

from model.errors import InvalidInput

if TYPE_CHECKING:
    from model.vocabulary import Vocabulary
    from pipelines.coco import Selection
    from pipelines.source_flags import Source

# A test compares the names with the defaults of Columns, which are too heavy to import here.
_COLUMNS = {
    "image_column": "image file names (image)",
    "caption_column": "captions (caption)",
    "image_id_column": "image ids (image_id, where there is one)",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=FILE:IMAGES",
        help="a source of a split: its captions, and the directory, bucket prefix or .tar files of "
        "its images; repeat it for each source, one split of them named train",
    )
    parser.add_argument(
        "--karpathy",
        action="append",
        default=[],
        metavar="FILE[:IMAGES]",
        help="dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json: with IMAGES a "
        "source with splits of its own (repeatable), without them the splits into which all images "
        "of --split go: train, restval, val and test",
    )
    parser.add_argument(
        "--join_restval", action="store_true", help="put Karpathy's restval into train"
    )
    parser.add_argument(
        "--split_list",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="image names, one a line, such as Flickr_8k.trainImages.txt: of the split's sources "
        "take these images alone",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="a vocabulary.json or a Keras Tokenizer's JSON, instead of counting words of train",
    )
    for name, text in _COLUMNS.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=f"column of a table's {text}")


def read_sources(args: argparse.Namespace) -> "tuple[tuple[Source, ...], Selection]":
    """The sources, and which of their images go where."""
    from pipelines.annotations import Columns
    from pipelines.coco import Selection
    from pipelines.source_flags import Source, parse_karpathy, parse_source, parse_split_list

    splits = [parse_source(text) for text in args.split]
    karpathy = [parse_karpathy(text) for text in args.karpathy]
    complete = [source for source in karpathy if isinstance(source, Source)]
    only_splits = [path for path in karpathy if isinstance(path, str)]
    if only_splits and not splits:
        raise InvalidInput(
            f"--karpathy {only_splits[0]} assigns the images of --split, of which there is none; "
            "expected FILE:IMAGES, or a --split"
        )
    if not splits and not complete:
        raise InvalidInput(
            "no source; expected --split NAME=FILE:IMAGES or --karpathy FILE:IMAGES, at least one"
        )
    if len(only_splits) > 1:
        raise InvalidInput(
            f"--karpathy {only_splits[0]} and {only_splits[1]} both assign the images of --split, "
            "expected one such file; pass FILE:IMAGES for a source of its own"
        )
    if args.join_restval and not karpathy:
        raise InvalidInput("--join_restval joins splits of Karpathy's; expected --karpathy with it")
    columns = {flag.removesuffix("_column"): getattr(args, flag) for flag in _COLUMNS}
    selection = Selection(
        karpathy=only_splits[0] if only_splits else None,
        join_restval=args.join_restval,
        lists=tuple(map(parse_split_list, args.split_list)),
        columns=Columns(**{name: value for name, value in columns.items() if value is not None}),
    )
    return (*splits, *complete), selection


def read_vocabulary(args: argparse.Namespace) -> "Vocabulary | None":
    """The vocabulary to be used instead of counting, if one is named."""
    if args.vocabulary is None:
        return None
    from model.vocabulary import Vocabulary
    from pipelines import storage
    from pipelines.runner import check_beam_args

    if args.min_word_count is not None:
        raise InvalidInput(
            f"--min_word_count {args.min_word_count} with --vocabulary {args.vocabulary}, whose "
            "words are not counted; leave one of them out"
        )
    # Beam's flags say how buckets are reached.
    check_beam_args(args.beam_args)
    try:
        text = storage.read_bytes(args.vocabulary).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{args.vocabulary}: cannot be read ({error}), expected a vocabulary.json or the JSON "
            "of a Keras Tokenizer"
        ) from error
    return Vocabulary.from_text(text, args.vocabulary)
