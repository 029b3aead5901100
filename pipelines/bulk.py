"""Caption a directory, a glob or a manifest of URLs, and account for every image.

    captionbeam bulk --input photos/ --output captions/ --model models/captioner
    captionbeam bulk --input urls.csv --url_column link --output captions/ --server localhost:8500

--input is a directory (all its images, however deep), a glob, or a manifest: .txt (one URL or
path a line), .csv, .tsv or .jsonl with the columns named. OUTPUT holds captions-*.jsonl,
failures-*.jsonl and, once everything is accounted for, summary.json, whose ledger says
inputs = captioned + failed (by reason) + skipped.

The same command again goes on where it stopped. A URL that leads to a loopback, private or
link-local address fails unless --allow_private names its network; so does one that its site's
robots.txt forbids, unless --ignore_robots is given. Flags of Beam (--runner=…) are passed on.
"""

import argparse

from model.errors import InvalidInput
from model.startup import import_tensorflow
from pipelines import fetch_settings
from pipelines.balance import check_failure_rate
from pipelines.bulk_job import CAPTIONS_FILE, FAILURES_FILE, BulkConfig, caption_all
from pipelines.manifests import DEFAULT_URL_COLUMN, Columns
from pipelines.sources import TABLE_SUFFIXES, has_columns
from serving import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    default = BulkConfig("")
    parser.add_argument("--input", required=True, metavar="DIR|GLOB|MANIFEST")
    parser.add_argument("--output", required=True, metavar="OUT", help="directory of the results")
    flags.add_target(parser)
    parser.add_argument(
        "--url_column",
        metavar="COLUMN",
        help=f"of a manifest: URL or path (default: {DEFAULT_URL_COLUMN})",
    )
    parser.add_argument(
        "--id_column", metavar="COLUMN", help="of a manifest: key (default: the URL or path)"
    )
    fetch_settings.add_arguments(parser)
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
        fetch_settings.from_arguments(args),
        args.batch_size,
        args.shard_size,
        args.max_failure_rate,
    )
    columns = _columns(args)
    target = flags.target(args)
    import_tensorflow()
    from pipelines.captioning import Clients

    ledger = caption_all(args.input, columns, Clients(target), config, args.beam_args)
    output = args.output.rstrip("/")
    print(f"{ledger}\ncaptions: {output}/{CAPTIONS_FILE.format(name='*')}")
    rows = f"{output}/{FAILURES_FILE.format(name='*')}"
    check_failure_rate(ledger.captioned, ledger.failed, config.max_failure_rate, rows)
    return 0


def _columns(args: argparse.Namespace) -> Columns:
    """Where the manifest keeps what; raises InvalidInput for a column of what has none."""
    given = {
        field: getattr(args, f"{field}_column")
        for field in ("url", "id")
        if getattr(args, f"{field}_column") is not None
    }
    if given and not has_columns(args.input):
        field, name = next(iter(given.items()))
        raise InvalidInput(
            f"--{field}_column {name}: --input {args.input} has no columns, expected a manifest "
            f"({', '.join(TABLE_SUFFIXES)}); leave it out"
        )
    return Columns(**given)
