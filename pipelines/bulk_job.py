"""Bulk captioning as a job: inputs → shards → captions, failures and a summary.

What is heavy is imported inside the functions: the command reads its defaults from here and
must answer a wrong flag at once.
"""

from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import InvalidInput, Reason
from pipelines.caption_rows import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.captioning import CaptionSettings, Clients
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
      shard_size: images in one shard, about; of the first run, for as long as its rows last.
      max_failure_rate: failed ÷ all images above which the job does not pass.
      asked: what a row says besides the caption.
      dedupe: caption images of the same bytes once a shard.
      retry: reasons of failures that are to be tried again.
      limit: images to take, the first ones; None for all.
      sample: images to take, by the hash of their keys; None for all.
    """

    output: str
    allow_private: tuple[str, ...] = ()
    batch_size: int = 32
    shard_size: int = 512
    max_failure_rate: float = 0.1
    asked: Asked = field(default_factory=Asked)
    dedupe: bool = False
    retry: frozenset[str] = frozenset()
    limit: int | None = None
    sample: int | None = None

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
    from pipelines.job_plan import delete_old_specs
    from pipelines.jobs import Job
    from pipelines.ledger import (
        SUMMARY_FILE,
        WriteSummary,
        check_counted,
        is_complete,
        read_ledger,
    )
    from pipelines.runner import check_beam_args
    from pipelines.shards import hold_output, run_job
    from pipelines.sources import list_sources

    check_beam_args(beam_args, config.output)
    AddressRules(config.allow_private)
    _check_apart(where, config.output)
    found = _take(list_sources(where, columns), config)
    with clients.open() as client:
        name, version = client.model
        config.asked.check(client.check())
        settings = CaptionSettings(
            name,
            version,
            config.batch_size,
            config.allow_private,
            config.asked,
            config.dedupe,
            config.retry,
        )
        job = Job(
            "bulk",
            config.output,
            CAPTIONS_FILE,
            FAILURES_FILE,
            published=SUMMARY_FILE,
            amendable=True,
        )
        with hold_output(job, beam_args) as job:
            job = _plan(job, found, settings, config)
            if is_complete(job):
                print(f"{config.output} is complete; nothing to do")
            else:
                work = CaptionShard(clients.pinned(version), settings)
                publish = WriteSummary(job, found.skipped, {"name": name, "version": version})
                counted = run_job(job, work, publish, beam_args)
                check_counted(read_ledger(job), counted)
            delete_old_specs(job)
            return read_ledger(job)


def _take(found: "Sources", config: BulkConfig) -> "Sources":
    """Those of the images that were asked for; the others are skipped."""
    from pipelines.job_plan import hash_of

    items = found.items
    if config.sample is not None:
        taken = {item["key"] for item in sorted(items, key=hash_of)[: config.sample]}
        items = [item for item in items if item["key"] in taken]
    items = items[: config.limit]
    if len(items) == len(found.items):
        return found
    return replace(
        found, items=items, skipped=found.skipped | {"not_taken": len(found.items) - len(items)}
    )


def _plan(job: "Job", found: "Sources", settings: "CaptionSettings", config: BulkConfig) -> "Job":
    """Cuts the items into shards; raises InvalidInput where OUTPUT holds another job."""
    from pipelines.job_plan import assign, plan_job, planned_shards, with_retries

    # A key stays in its shard however many images come, so that its row is found again.
    count = planned_shards(job) or -(-len(found.items) // config.shard_size)
    shards = {
        f"{index:05d}-of-{count:05d}": items
        for index, items in enumerate(assign(found.items, count))
    }
    # What was passed over decides no row: a stray text file must not keep a job from going on.
    model = {"name": settings.model_name, "version": settings.model_version}
    job = plan_job(job, shards, asdict(settings.asked), made_by=model)
    return with_retries(job, settings.retry)


def _check_apart(where: str, output: str) -> None:
    """Raises InvalidInput where results would become inputs of the next run."""
    from pipelines.manifests import MANIFEST_SUFFIXES, scheme

    if scheme(where) is None:
        if Path(where).is_dir():
            inside = Path(output).resolve().is_relative_to(Path(where).resolve())
        else:
            inside = has_magic(where) and not Path(where).exists() and _reaches(where, output)
    elif has_magic(where):
        inside = _reaches(where, output)
    else:
        listed = Path(where).suffix.lower() in MANIFEST_SUFFIXES
        inside = not listed and f"{output}/".startswith(f"{where.rstrip('/')}/")
    if inside:
        raise InvalidInput(f"--output {output}: lies in --input {where}; take one outside it")


def _reaches(pattern: str, output: str) -> bool:
    """Whether a glob can match OUTPUT or what lies in it."""
    there, wanted = _parts(output), _parts(pattern)
    for part, name in zip(wanted, there, strict=False):
        if "**" in part:
            return True
        if not fnmatchcase(name, part):
            return False
    return len(wanted) >= len(there)


def _parts(path: str) -> list[str]:
    """The names in a path or URL; those of a local path from the root, without links."""
    if "://" in path:
        return path.rstrip("/").split("/")
    parts = Path(path).absolute().parts
    literal = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    return [*Path(*parts[:literal]).resolve().parts, *parts[literal:]]
