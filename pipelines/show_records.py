"""Show what a records directory holds: splits, grids, encoder, vocabulary, captions, ledgers.

    captionbeam records RECORDS
    captionbeam records RECORDS --show 12 --split val --picture val.png

With --show, the first N records of a split are printed and drawn: each photograph, as far as it
can still be read, under the energy of its grid, with its captions. Beam's flags for buckets
(--s3_endpoint_url=… and the like) may follow.
"""

import argparse

from model.errors import InvalidInput
from model.startup import import_tensorflow

_DEFAULT_PICTURE = "records.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's flags."""
    parser.add_argument("records", metavar="RECORDS", help="directory or bucket")
    parser.add_argument(
        "--show", type=int, metavar="N", help="print and draw the first N records of a split"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="whose records and caption lengths are shown (train)"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help=f"where --show draws them ({_DEFAULT_PICTURE})"
    )


def run(args: argparse.Namespace) -> int:
    """Print, and draw with --show."""
    if args.show is None and args.picture is not None:
        raise InvalidInput("--picture, expected --show N with it")
    if args.show is not None and args.show < 1:
        raise InvalidInput(f"--show {args.show}, expected at least 1")
    import_tensorflow()
    from pipelines.records_view import open_view, print_records, print_summary
    from pipelines.runner import check_beam_args
    from pipelines.storage import absolute_path

    # They say how a bucket is reached.
    check_beam_args(args.beam_args)

    view = open_view(absolute_path(args.records), args.split)
    print_summary(view)
    if args.show is not None:
        print_records(view, args.show, args.picture or _DEFAULT_PICTURE)
    return 0
