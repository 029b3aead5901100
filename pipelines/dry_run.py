"""What a bulk job would do: counts, bytes, kinds, what is left, and a time from a sample.

Nothing is written. The inputs are listed, and cut into shards, as the job itself does it; a sample,
drawn by keys and so the same each time, is read, decoded and captioned.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from model.errors import ItemFailure
from model.image_bytes import canonicalise, format_of
from pipelines.bulk_job import BulkConfig, caption_settings, listed, new_job
from pipelines.bulk_plan import plan
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients
from pipelines.columns import Columns
from pipelines.dry_run_report import DryRun, Left, Sample, Survey
from pipelines.fetch import Fetcher, process_fetcher
from pipelines.fetch_order import is_url
from pipelines.image_files import listed_bytes
from pipelines.job_plan import foresee_job, hash_of
from pipelines.jobs import Item, Job
from pipelines.ledger import WriteSummary
from pipelines.listing import IMAGE_SUFFIXES
from pipelines.partition import Partition
from pipelines.read_ahead import batches, read_ahead
from pipelines.reading import read_original, read_threads
from pipelines.runner import DRY_RUN, can_build, check_beam_args
from pipelines.shards import build_job
from serving.client import Client

SAMPLE = 32


@dataclass(frozen=True)
class _Read:
    """Of an image of the sample: its size and format as it lies there, and canonical bytes."""

    size: int
    format: str
    data: bytes


def dry_run(
    inputs: str | Sequence[str],
    columns: Columns,
    clients: Clients,
    config: BulkConfig,
    beam_args: Sequence[str] = (),
    now_s: Callable[[], float] = time.perf_counter,
) -> DryRun:
    """Look at what `bulk_job.caption_all` would do with the same arguments; OUTPUT stays as it is.

    A runner that can build a job without running it (Dataflow) does so as well.

    Args:
      inputs: as caption_all.
      columns: likewise.
      clients: likewise.
      config: likewise.
      beam_args: Beam's flags.
      now_s: seconds.

    Raises:
      CaptionbeamError: as caption_all, where that would find it before it captions.
    """
    builds = can_build(beam_args)
    check_beam_args((*beam_args, *([DRY_RUN] if builds else [])), config.output)
    with listed(inputs, columns, config) as (images, skipped), clients.open() as client:
        settings = caption_settings(client, config)
        job = plan(new_job(config), images, settings, config.shard_size, skipped, foresee_job)
        survey, drawn = _look_through(images, len(job.specs), skipped)
        sample = _caption_sample(drawn, client, settings, now_s)
        if builds:
            work = CaptionShard(clients.pinned(settings.model_version), settings)
            build_job(
                job,
                work,
                WriteSummary(
                    job, skipped, settings.model, settings.rows, config.outputs.coco_results
                ),
                beam_args,
            )
        return DryRun(settings.model, survey, _left(job), sample, builds)


def _look_through(
    images: Partition, shards: int, skipped: Mapping[str, int]
) -> tuple[Survey, list[Item]]:
    """What there is, and the sample."""
    kinds: Counter[str] = Counter()
    files = known_bytes = 0

    def noted() -> Iterator[Item]:
        nonlocal files, known_bytes
        for items in images.shards(shards):
            for item in items:
                kinds[_kind(str(item["source"]))] += 1
                size = listed_bytes(item)
                files += size is not None
                known_bytes += size or 0
                yield item

    drawn = nsmallest(SAMPLE, noted(), key=hash_of)
    return Survey(images.items, skipped, kinds, files, known_bytes), drawn


def _kind(source: str) -> str:
    """A suffix of an image, of a URL or not."""
    url = is_url(source)
    try:
        name = urlsplit(source).path if url else source
    except ValueError:
        name = ""
    suffix = PurePosixPath(name).suffix.lower()
    return ("URL " if url else "") + (suffix if suffix in IMAGE_SUFFIXES else "of another suffix")


def _left(job: Job) -> Left:
    """What the shards found in OUTPUT leave to do."""
    missing = [spec for spec in job.specs if job.result(spec) is None]
    earlier = [result for spec in job.specs if (result := job.last_result(spec.name)) is not None]
    return Left(
        shards=len(job.specs),
        shards_left=len(missing),
        images_left=sum(spec.items for spec in missing),
        captioned=sum(result.written for result in earlier),
        failed=sum(sum(result.failed.values()) for result in earlier),
    )


def _caption_sample(
    drawn: Sequence[Item],
    client: Client,
    settings: CaptionSettings,
    now_s: Callable[[], float],
) -> Sample:
    began_s = now_s()
    load = partial(_read, process_fetcher(settings.fetch))
    threads = read_threads(drawn, settings.batch_size)
    found = list(read_ahead(drawn, load, threads=threads, ahead=len(drawn)))
    read_s = now_s() - began_s
    read = [(item, each) for item, each in found if isinstance(each, _Read)]
    failed = Counter(str(each.reason) for _, each in found if isinstance(each, ItemFailure))
    data = [each.data for _, each in read]
    # A model's first answer takes longer than all others.
    list(settings.asked.ask(client, data[:1], settings.batch_size))
    began_s = now_s()
    computed = 0
    for batch in batches(data, settings.batch_size):
        computed += settings.batch_size
        told = settings.asked.ask(client, batch, settings.batch_size)
        failed.update(str(each.reason) for each in told if isinstance(each, ItemFailure))
    return Sample(
        taken=len(drawn),
        read_s=read_s,
        asked=len(data),
        # Each call takes as long as a full one.
        caption_s=(now_s() - began_s) * len(data) / max(computed, 1),
        formats=Counter(each.format for _, each in read),
        failed=failed,
        unlisted=[each.size for item, each in read if listed_bytes(item) is None],
    )


def _read(fetcher: Fetcher, item: Item) -> _Read:
    data = read_original(fetcher, item)
    canonical = canonicalise(data)
    return _Read(len(data), format_of(data), canonical.data)
