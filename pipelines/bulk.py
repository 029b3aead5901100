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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.captioning import Clients
    from pipelines.jobs import Job
    from pipelines.ledger import Ledger
    from pipelines.sources import Columns, Sources

CAPTIONS_FILE = "captions-{name}.jsonl"
FAILURES_FILE = "failures-{name}.jsonl"


@dataclass(frozen=True)
class BulkConfig:
    """Settings of a bulk job.

    Attributes:
      output: OUTPUT directory.
      allow_private: networks that URLs may lead to although they are not public.
      batch_size: images in one request.
      shard_size: images in one shard, about.
      max_failure_rate: failed ÷ all images above which the job does not pass.
    """

    output: str
    allow_private: tuple[str, ...] = ()
    batch_size: int = 32
    shard_size: int = 512
    max_failure_rate: float = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"--{name} {getattr(self, name)}: expected 1 or more")
        if not 0 <= self.max_failure_rate <= 1:
            raise InvalidInput(f"--max_failure_rate {self.max_failure_rate}: expected 0 to 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    default = BulkConfig("")
    parser.add_argument("--input", required=True, metavar="DIR|GLOB|MANIFEST")
    parser.add_argument("--output", required=True, metavar="OUT", help="directory of the results")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="MODELS/NAME", help="exported model to run here")
    where.add_argument("--server", metavar="HOST:PORT", help="server to ask")
    parser.add_argument(
        "--model_name", metavar="NAME", help="what the server calls its model (default: captioner)"
    )
    parser.add_argument("--url_column", metavar="COLUMN", help="URL or path (default: url)")
    parser.add_argument("--id_column", metavar="COLUMN", help="key (default: the URL or path)")
    parser.add_argument(
        "--allow_private",
        metavar="NETWORK",
        nargs="+",
        action="extend",
        default=[],
        help="private networks that URLs may lead to, such as 127.0.0.0/8",
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
        tuple(args.allow_private),
        args.batch_size,
        args.shard_size,
        args.max_failure_rate,
    )
    from pipelines.captioning import Clients, Target
    from pipelines.manifests import DEFAULT_URL_COLUMN, Columns
    from serving.client import DEFAULT_MODEL_NAME

    columns = Columns(args.url_column or DEFAULT_URL_COLUMN, args.id_column)
    target = Target(args.model, args.server, args.model_name or DEFAULT_MODEL_NAME)
    ledger = caption_all(args.input, columns, Clients(target), config, args.beam_args)
    print(f"{ledger}\ncaptions: {args.output.rstrip('/')}/{CAPTIONS_FILE.format(name='*')}")
    ledger.check_failure_rate(config.max_failure_rate)
    return 0


def caption_all(
    where: str,
    columns: "Columns",
    clients: "Clients",
    config: BulkConfig,
    beam_args: "Sequence[str]" = (),
) -> "Ledger":
    """Captions an input, or finds it captioned.

    Args:
      where: directory, glob or manifest.
      columns: where a manifest keeps what.
      clients: where captions come from.
      config: settings.
      beam_args: flags of Beam.

    Returns:
      The checked ledger.

    Raises:
      CaptionbeamError: the input, the output or the model cannot be used; the model failed;
        the ledger does not balance.
    """
    from pipelines.addresses import AddressRules
    from pipelines.captioning import CaptionSettings, CaptionShard
    from pipelines.ledger import WriteSummary, read_ledger
    from pipelines.shards import run_job
    from pipelines.sources import list_sources

    AddressRules(config.allow_private)
    _check_apart(where, config.output)
    found = list_sources(where, columns)
    with clients.open() as client:
        name, version = client.model
        settings = CaptionSettings(name, version, config.batch_size, config.allow_private)
        job = _plan(found, settings, config)
        ledger = read_ledger(job)
        if ledger is not None:
            print(f"{config.output} is complete; nothing to do")
            return ledger
        work = CaptionShard(clients.pinned(version), settings)
        run_job(
            job,
            work,
            WriteSummary(job, found.skipped, {"name": name, "version": version}),
            beam_args,
        )
    ledger = read_ledger(job)
    if ledger is None:
        raise InvalidInput(
            f"{config.output}: the runner ended without a summary; repeat the command"
        )
    return ledger


def _plan(found: "Sources", settings: object, config: BulkConfig) -> "Job":
    """Cuts the items into shards; raises InvalidInput where OUTPUT holds another job."""
    from dataclasses import asdict

    from pipelines.jobs import Job, assign, plan_job

    count = -(-len(found.items) // config.shard_size)
    shards = {
        f"{index:05d}-of-{count:05d}": items
        for index, items in enumerate(assign(found.items, count))
    }
    job = Job("bulk", config.output, CAPTIONS_FILE, FAILURES_FILE)
    decisive = {**asdict(settings), "shard_size": config.shard_size, "skipped": found.skipped}  # type: ignore[call-overload]
    try:
        return plan_job(job, shards, decisive)
    except OSError as error:
        raise InvalidInput(f"--output {config.output}: cannot be written ({error})") from error


def _check_apart(where: str, output: str) -> None:
    """Raises InvalidInput where results would become inputs of the next run."""
    if Path(where).is_dir() and Path(output).resolve().is_relative_to(Path(where).resolve()):
        raise InvalidInput(f"--output {output}: lies in --input {where}; take one outside it")
