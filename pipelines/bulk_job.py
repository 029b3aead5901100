"""Bulk captioning as a job: inputs → shards → captions, failures and a summary.

What is heavy is imported inside the functions: the command reads its defaults from here and
must answer a wrong flag at once.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.errors import InvalidInput, Reason
from pipelines.caption_rows import Asked
from pipelines.fetch_settings import FetchSettings
from pipelines.output_settings import FORMATS, OutputSettings, captions_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipelines.captioning import CaptionSettings
    from pipelines.clients import Clients
    from pipelines.columns import Columns
    from pipelines.jobs import Job
    from pipelines.ledger import Ledger
    from pipelines.partition import Partition
    from pipelines.tree_walk import Elsewhere
    from serving.client import Client

FAILURES_FILE = "failures-{name}.jsonl"


@dataclass(frozen=True)
class BulkConfig:
    """Settings of a bulk job.

    Attributes:
      output: OUTPUT directory.
      fetch: how URLs are read.
      batch_size: images in one request.
      shard_size: images in one shard, about; of the first run, for as long as its rows last.
      max_failure_rate: failed ÷ all images above which the job does not pass.
      asked: what a row says besides the caption.
      dedupe: caption images of the same bytes once (pipelines/same_bytes).
      retry: reasons of failures that are to be tried again.
      limit: images to take, the first ones; None for all.
      sample: images to take, by the hash of their keys; None for all.
      outputs: what is written of the captions.
    """

    output: str
    fetch: FetchSettings = field(default_factory=FetchSettings)
    batch_size: int = 32
    shard_size: int = 512
    max_failure_rate: float = 0.1
    asked: Asked = field(default_factory=Asked)
    dedupe: bool = False
    retry: frozenset[str] = frozenset()
    limit: int | None = None
    sample: int | None = None
    outputs: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("batch_size", "shard_size", "limit", "sample"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInput(f"--{name} {value}: expected 1 or more")
        if unknown := sorted(self.retry.difference(Reason)):
            raise InvalidInput(
                f"--retry_failed {unknown[0]}: no reason of a failure, expected of "
                f"{', '.join(Reason)}"
            )
        if not 0 <= self.max_failure_rate <= 1:
            raise InvalidInput(f"--max_failure_rate {self.max_failure_rate}: expected 0 to 1")


def caption_all(
    inputs: "str | Sequence[str]",
    columns: "Columns",
    clients: "Clients",
    config: BulkConfig,
    beam_args: "Sequence[str]" = (),
) -> "Ledger":
    """Captions an input or several, or finds them captioned.

    Args:
      inputs: directories, globs, tars or manifests (pipelines/sources).
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
    from pipelines.listing_job import listing_job
    from pipelines.runner import check_beam_args

    check_beam_args(beam_args, config.output)
    elsewhere = listing_job(new_job(config), beam_args)
    with listed(inputs, columns, config, elsewhere) as (images, skipped):
        return _caption(images, skipped, clients, config, beam_args)


@contextmanager
def listed(
    inputs: "str | Sequence[str]",
    columns: "Columns",
    config: BulkConfig,
    elsewhere: "Elsewhere | None" = None,
) -> "Iterator[tuple[Partition, Mapping[str, int]]]":
    """The images that a job takes, and what was passed over, by kind; raises InvalidInput.

    Args:
      inputs: as caption_all.
      columns: likewise.
      config: likewise.
      elsewhere: lists what is left of large inputs; None where this process does.
    """
    from pipelines.apart import check_apart
    from pipelines.bulk_plan import Taken, check_coco_ids
    from pipelines.fetch_order import is_url
    from pipelines.partition import Partition
    from pipelines.proxies import Proxies
    from pipelines.sidecars import check_directory
    from pipelines.sources import Sources

    inputs = [inputs] if isinstance(inputs, str) else inputs
    for where in inputs:
        check_apart(where, config.output)
    if (sidecars := _sidecars(config)) is not None:
        check_directory(sidecars, new_job(config), list(inputs))
    own = [config.output, *([] if sidecars is None else [sidecars])]
    taken = Taken(Sources(inputs, columns, elsewhere, own), config.limit, config.sample)
    with Partition(taken) as images:
        if config.outputs.coco_results:
            check_coco_ids(images)
        Proxies(config.fetch.allow_proxy).check(filter(is_url, images.sources()))
        yield images, taken.skipped


def new_job(config: BulkConfig) -> "Job":
    """The job of a configuration, without specs and lease."""
    from pipelines.companions import ATTENTION_DIR
    from pipelines.jobs import Job
    from pipelines.ledger import SUMMARY_FILE
    from pipelines.sidecars import scratch_pattern

    outputs, sidecars = config.outputs, _sidecars(config)
    return Job(
        "bulk",
        config.output,
        outputs.captions_file,
        FAILURES_FILE,
        published=SUMMARY_FILE,
        amendable=True,
        other_files=tuple(captions_file(other) for other in FORMATS if other != outputs.format),
        trees=(ATTENTION_DIR,),
        scratch=() if sidecars is None else (scratch_pattern(sidecars),),
    )


def caption_settings(client: "Client", config: BulkConfig) -> "CaptionSettings":
    """What the images are captioned with; raises InvalidInput where the model cannot do it."""
    from pipelines.captioning import CaptionSettings

    name, version = client.model
    config.asked.check(client.check())
    return CaptionSettings(
        model_name=name,
        model_version=version,
        batch_size=config.batch_size,
        fetch=config.fetch,
        asked=config.asked,
        dedupe=config.dedupe,
        retry=config.retry,
        format=config.outputs.format,
        sidecars=_sidecars(config),
        copies=config.outputs.copies,
    )


def _sidecars(config: BulkConfig) -> str | None:
    """Where the sidecars go, for workers with another current directory."""
    from pipelines.storage import absolute_path

    sidecars = config.outputs.sidecars
    return None if sidecars is None else absolute_path(sidecars).rstrip("/")


def _caption(
    images: "Partition",
    skipped: "Mapping[str, int]",
    clients: "Clients",
    config: BulkConfig,
    beam_args: "Sequence[str]",
) -> "Ledger":
    from pipelines.bulk_plan import plan
    from pipelines.captioning import CaptionShard
    from pipelines.job_plan import delete_old_specs
    from pipelines.ledger import WriteSummary, check_counted, is_complete, read_ledger
    from pipelines.listing_job import delete_listings
    from pipelines.shards import hold_output, run_job
    from pipelines.sidecars import remove_scratch

    coco_results = config.outputs.coco_results
    with clients.open() as client:
        settings = caption_settings(client, config)
        with hold_output(new_job(config), beam_args) as job:
            job = plan(job, images, settings, config.shard_size, skipped)
            if is_complete(job, skipped, coco_results):
                print(f"{config.output} is complete; nothing to do")
            else:
                work = CaptionShard(clients.pinned(settings.model_version), settings)
                publish = WriteSummary(job, skipped, settings.model, settings.rows, coco_results)
                counted = run_job(job, work, publish, beam_args)
                check_counted(read_ledger(job), counted)
            delete_old_specs(job)
            delete_listings(job)
            if settings.sidecars is not None:
                remove_scratch(settings.sidecars)
            return read_ledger(job)
