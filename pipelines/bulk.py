"""Caption a directory, a glob or a manifest of URLs, and account for every image.

    captionbeam bulk --input photos/ --output captions/ --model models/captioner
    captionbeam bulk --input urls.csv --url_column link --output captions/ --server localhost:8500

--input is a directory (all its images, however deep), a glob, or a manifest: .txt (one URL or
path a line), .csv, .tsv or .jsonl with the columns named. OUTPUT holds captions-*.jsonl,
failures-*.jsonl and, once everything is accounted for, summary.json, whose ledger says
inputs = captioned + failed (by reason) + skipped.

The same command again goes on where it stopped. A URL that leads to a loopback, private or
link-local address fails unless --allow_private names its network. Flags of Beam
(--runner=…) are passed on.
"""

import argparse

from model.startup import import_tensorflow
from pipelines.bulk_job import CAPTIONS_FILE, BulkConfig, caption_all
from serving import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    default = BulkConfig("")
    parser.add_argument("--input", required=True, metavar="DIR|GLOB|MANIFEST")
    parser.add_argument("--output", required=True, metavar="OUT", help="directory of the results")
    flags.add_target(parser)
    parser.add_argument("--url_column", metavar="COLUMN", help="URL or path (default: url)")
    parser.add_argument("--id_column", metavar="COLUMN", help="key (default: the URL or path)")
    flags.add_allow_private(parser)
    parser.add_argument("--batch_size", type=int, default=default.batch_size, metavar="N")
    parser.add_argument("--shard_size", type=int, default=default.shard_size, metavar="N")
    parser.add_argument(
        "--max_failure_rate",
        type=float,
        default=default.max_failure_rate,
        metavar="RATE",
        help="exit 1 when more than this part of the images failed (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Captions everything; raises CheckFailed (exit 1) when too many failed."""
    config = BulkConfig(
        args.output,
        tuple(args.allow_private),
        args.batch_size,
        args.shard_size,
        args.max_failure_rate,
    )
    import_tensorflow()
    from pipelines.captioning import Clients, Target
    from pipelines.manifests import DEFAULT_URL_COLUMN, Columns

    columns = Columns(args.url_column or DEFAULT_URL_COLUMN, args.id_column)
    target = Target(args.model, args.server, args.model_name)
    ledger = caption_all(args.input, columns, Clients(target), config, args.beam_args)
    print(f"{ledger}\ncaptions: {args.output.rstrip('/')}/{CAPTIONS_FILE.format(name='*')}")
    ledger.check_failure_rate(config.max_failure_rate)
    return 0
