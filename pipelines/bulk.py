"""Caption directories, globs, tar shards and manifests of URLs, and account for every image.

    captionbeam bulk --input photos/ --output captions/ --model models/captioner
    captionbeam bulk --input urls.csv --url_column link --output captions/ --server localhost:8500
    captionbeam bulk --input 2023/ 2024/ 'shards/*.tar' --output captions/ --model models/captioner

An --input is a directory (all its images, however deep), a glob, a .tar or a glob of them (all
their images), or a manifest: .txt (one URL or path a line), .csv, .tsv, .json, .jsonl or
.parquet with the columns named, each also packed (.gz). Of several inputs the keys of
directories and manifests have the input's name in front. The other columns of a manifest stand
in the captions' rows, below "columns".

OUTPUT holds captions-*.jsonl (or .csv, .parquet), failures-*.jsonl and, once everything is
accounted for, summary.json, whose ledger says inputs = captioned + failed (by reason) + skipped.

The same command again goes on where it stopped. A URL that leads to a loopback, private or
link-local address fails unless --allow_private names its network; so does one that its site's
robots.txt forbids, unless --ignore_robots is given. Flags of Beam (--runner=…) are passed on.

--dry_run says what would be done and how long it would take, and writes nothing; with
--runner=DataflowRunner the job is built, too.
"""

import argparse

from model.errors import InvalidInput
from model.startup import import_tensorflow
from pipelines import fetch_settings, output_settings
from pipelines.balance import check_failure_rate
from pipelines.bulk_job import FAILURES_FILE, BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.columns import DEFAULT_URL_COLUMN, Columns
from pipelines.manifest_rows import TABLE_SUFFIXES
from pipelines.sources import has_columns
from serving import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    default = BulkConfig("")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR|GLOB|TAR|MANIFEST",
        help="where the images are; may be several",
    )
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
    parser.add_argument(
        "--carry_columns",
        nargs="*",
        metavar="COLUMN",
        help="of a manifest: what stands in the rows as well (default: all others, but bytes)",
    )
    fetch_settings.add_arguments(parser)
    parser.add_argument(
        "--retry_failed",
        metavar="REASON[,…]",
        default="",
        help="images that failed with these reasons are tried again, such as timeout,dns,http_5xx",
    )
    parser.add_argument(
        "--nbest", type=int, default=0, metavar="N", help="rows have the N best captions, too"
    )
    parser.add_argument(
        "--min_log_prob",
        type=float,
        metavar="LOG_PROB",
        help="mark rows whose caption has a lower log-probability; none is dropped",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="draw where the model looked at each word, a PNG an image below OUTPUT/attention",
    )
    output_settings.add_arguments(parser)
    parser.add_argument(
        "--dedupe",
        action="store_true",
        help="caption images of the same bytes once; each has its row",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N images")
    parser.add_argument("--sample", type=int, metavar="N", help="take N images drawn by their keys")
    # Beam has a flag of that name with a value, which people write in front of Dataflow.
    parser.add_argument(
        "--dry_run",
        nargs="?",
        const=True,
        default=False,
        type=_truth,
        metavar="True|False",
        help="count, caption a sample of 32 images, say how long all would take; write nothing",
    )
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
        Asked(args.nbest, args.min_log_prob, args.explain),
        args.dedupe,
        frozenset(filter(None, map(str.strip, args.retry_failed.split(",")))),
        args.limit,
        args.sample,
        output_settings.from_arguments(args),
    )
    columns = _columns(args)
    target = flags.target(args)
    import_tensorflow()
    from pipelines.clients import Clients

    if args.dry_run:
        from pipelines.dry_run import dry_run

        print(dry_run(args.input, columns, Clients(target), config, args.beam_args))
        return 0
    ledger = caption_all(args.input, columns, Clients(target), config, args.beam_args)
    output = args.output.rstrip("/")
    print(f"{ledger}\ncaptions: {output}/{config.outputs.captions_file.format(name='*')}")
    rows = f"{output}/{FAILURES_FILE.format(name='*')}"
    remedy = f"repeat the command with --retry_failed {','.join(ledger.failed)}"
    check_failure_rate(ledger.captioned, ledger.failed, config.max_failure_rate, rows, remedy)
    return 0


def _truth(said: str) -> bool:
    if said not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{said!r}, expected True or False")
    return said == "True"


def _columns(args: argparse.Namespace) -> Columns:
    """Where the manifests keep what; raises InvalidInput for a column where none has any."""
    given = {
        flag: value
        for flag in ("url_column", "id_column", "carry_columns")
        if (value := getattr(args, flag)) is not None
    }
    if given and not any(map(has_columns, args.input)):
        flag, value = next(iter(given.items()))
        said = " ".join([f"--{flag}", *([value] if isinstance(value, str) else value)])
        raise InvalidInput(
            f"{said}: --input {' '.join(args.input)} has no columns, expected a manifest "
            f"({', '.join(TABLE_SUFFIXES)}); leave it out"
        )
    url = DEFAULT_URL_COLUMN if args.url_column is None else args.url_column
    carry = None if args.carry_columns is None else tuple(args.carry_columns)
    return Columns(url, args.id_column, carry)
