"""Bulk captioning as a job: inputs → shards → captions, failures and a summary.

What is heavy is imported inside the functions: the command reads its defaults from here and
must answer a wrong flag at once.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from model.errors import InvalidInput, Reason
from pipelines.caption_rows import Asked
from pipelines.fetch_settings import FetchSettings
from pipelines.output_settings import FORMATS, OutputSettings, captions_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipelines.captioning import Clients
    from pipelines.columns import Columns
    from pipelines.jobs import Job
    from pipelines.ledger import Ledger
    from pipelines.partition import Partition

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
      dedupe: caption images of the same bytes once a shard.
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
    from pipelines.apart import check_apart
    from pipelines.bulk_plan import Taken, check_coco_ids
    from pipelines.fetch_order import is_url
    from pipelines.partition import Partition
    from pipelines.proxies import Proxies
    from pipelines.runner import check_beam_args
    from pipelines.sidecars import check_directory
    from pipelines.sources import Sources
    from pipelines.storage import absolute_path

    check_beam_args(beam_args, config.output)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    for where in inputs:
        check_apart(where, config.output)
    outputs = config.outputs
    if outputs.sidecars is not None:
        directory = absolute_path(outputs.sidecars).rstrip("/")
        outputs = replace(outputs, sidecars=directory)
        config = replace(config, outputs=outputs)
        check_directory(directory, _job(config), list(inputs))
    taken = Taken(Sources(inputs, columns), config.limit, config.sample)
    with Partition(taken) as images:
        if outputs.coco_results:
            check_coco_ids(images)
        Proxies(config.fetch.allow_proxy).check(filter(is_url, images.sources()))
        return _caption(images, taken.skipped, clients, config, beam_args)


def _caption(
    images: "Partition",
    skipped: "Mapping[str, int]",
    clients: "Clients",
    config: BulkConfig,
    beam_args: "Sequence[str]",
) -> "Ledger":
    from pipelines.bulk_plan import plan
    from pipelines.captioning import CaptionSettings, CaptionShard
    from pipelines.job_plan import delete_old_specs
    from pipelines.ledger import WriteSummary, check_counted, is_complete, read_ledger
    from pipelines.shards import hold_output, run_job
    from pipelines.sidecars import remove_scratch

    outputs = config.outputs
    with clients.open() as client:
        name, version = client.model
        config.asked.check(client.check())
        settings = CaptionSettings(
            model_name=name,
            model_version=version,
            batch_size=config.batch_size,
            fetch=config.fetch,
            asked=config.asked,
            dedupe=config.dedupe,
            retry=config.retry,
            format=outputs.format,
            sidecars=outputs.sidecars,
        )
        with hold_output(_job(config), beam_args) as job:
            job = plan(job, images, settings, config.shard_size)
            if is_complete(job, outputs.coco_results):
                print(f"{config.output} is complete; nothing to do")
            else:
                work = CaptionShard(clients.pinned(version), settings)
                model = {"name": name, "version": version}
                publish = WriteSummary(job, skipped, model, settings.rows, outputs.coco_results)
                counted = run_job(job, work, publish, beam_args)
                check_counted(read_ledger(job), counted)
            delete_old_specs(job)
            if outputs.sidecars is not None:
                remove_scratch(outputs.sidecars)
            return read_ledger(job)


def _job(config: BulkConfig) -> "Job":
    """The job, without specs."""
    from pipelines.companions import ATTENTION_DIR
    from pipelines.jobs import Job
    from pipelines.ledger import SUMMARY_FILE
    from pipelines.sidecars import scratch_pattern

    outputs = config.outputs
    return Job(
        "bulk",
        config.output,
        outputs.captions_file,
        FAILURES_FILE,
        published=SUMMARY_FILE,
        amendable=True,
        other_files=tuple(captions_file(other) for other in FORMATS if other != outputs.format),
        trees=(ATTENTION_DIR,),
        scratch=() if outputs.sidecars is None else (scratch_pattern(outputs.sidecars),),
    )
