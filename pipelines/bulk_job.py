"""Bulk captioning as a job: inputs → shards → captions, failures and a summary.

What is heavy is imported inside the functions: the command reads its defaults from here and
must answer a wrong flag at once.
"""

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import InvalidInput
from pipelines.fetch_settings import FetchSettings

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
      fetch: how URLs are read.
      batch_size: images in one request.
      shard_size: images in one shard, about.
      max_failure_rate: failed ÷ all images above which the job does not pass.
    """

    output: str
    fetch: FetchSettings = field(default_factory=FetchSettings)
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
    from pipelines.captioning import CaptionSettings, CaptionShard
    from pipelines.fetch_order import is_url
    from pipelines.jobs import Job
    from pipelines.ledger import SUMMARY_FILE, WriteSummary, is_complete, read_ledger
    from pipelines.proxies import Proxies
    from pipelines.runner import check_beam_args
    from pipelines.shards import hold_output, run_job
    from pipelines.sources import list_sources

    check_beam_args(beam_args, config.output)
    _check_apart(where, config.output)
    found = list_sources(where, columns)
    sources = (item["source"] for item in found.items)
    Proxies(config.fetch.allow_proxy).check(filter(is_url, sources))
    with clients.open() as client:
        name, version = client.model
        settings = CaptionSettings(name, version, config.batch_size, config.fetch)
        job = Job("bulk", config.output, CAPTIONS_FILE, FAILURES_FILE, published=SUMMARY_FILE)
        with hold_output(job, beam_args) as job:
            job = _plan(job, found, settings, config)
            if is_complete(job):
                print(f"{config.output} is complete; nothing to do")
            else:
                work = CaptionShard(clients.pinned(version), settings)
                publish = WriteSummary(job, found.skipped, {"name": name, "version": version})
                run_job(job, work, publish, beam_args)
            return read_ledger(job)


def _plan(job: "Job", found: "Sources", settings: "CaptionSettings", config: BulkConfig) -> "Job":
    """Cuts the items into shards; raises InvalidInput where OUTPUT holds another job."""
    from pipelines.jobs import assign, plan_job

    count = -(-len(found.items) // config.shard_size)
    shards = {
        f"{index:05d}-of-{count:05d}": items
        for index, items in enumerate(assign(found.items, count))
    }
    # What was passed over decides no row: a stray text file must not keep a job from going on.
    fetch = settings.fetch.decisive()
    decisive = {**asdict(settings), "fetch": fetch, "shard_size": config.shard_size}
    return plan_job(job, shards, decisive)


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
