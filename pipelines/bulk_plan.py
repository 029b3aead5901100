"""Which images a bulk job takes, and in which shards."""

import heapq
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from pipelines.captioning import CaptionSettings
from pipelines.coco_results import check_ids
from pipelines.job_plan import hash_of, plan_job, planned_shards, with_retries
from pipelines.jobs import Job
from pipelines.listing import Found
from pipelines.partition import Partition
from pipelines.sources import Sources

# What `skipped` calls images that --limit and --sample leave out.
NOT_TAKEN = "not_taken"
# Times the size that was asked for, from which on a shard is remarked on.
_LARGE = 4
# Items in memory while their keys are looked at.
_AT_ONCE = 10_000


class Taken:
    """Those of the images that were asked for; the others are skipped.

    Args:
      sources: all there are.
      limit: how many are taken, the first ones; None for all.
      sample: how many are taken by the hash of their keys, before the limit; None for all.

    Attributes:
      skipped: what was passed over, by kind; whole when the iteration has come to its end.
    """

    def __init__(self, sources: Sources, limit: int | None, sample: int | None) -> None:
        self._sources, self._limit, self._sample = sources, limit, sample
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[Found]:
        """Lists anew, to the end; raises as the sources do."""
        there = taken = 0

        def counted() -> Iterator[tuple[int, Found]]:
            nonlocal there
            for found in self._sources:
                yield there, found
                there += 1

        every = counted()
        if self._sample is None:
            chosen = every
        else:
            drawn = heapq.nsmallest(self._sample, every, key=lambda one: hash_of(one[1].item))
            chosen = iter(sorted(drawn, key=lambda one: one[0]))
        for _, found in islice(chosen, self._limit):
            taken += 1
            yield found
        for _ in every:
            pass
        left = {NOT_TAKEN: there - taken} if there > taken else {}
        self.skipped = self._sources.skipped | left


class _Shards:
    """The shards of a partition by name, one in memory at a time."""

    def __init__(self, partition: Partition, count: int) -> None:
        self._partition, self._count = partition, count

    def items(self) -> Iterator[tuple[str, Sequence[dict[str, Any]]]]:
        for index, items in enumerate(self._partition.shards(self._count)):
            yield f"{index:05d}-of-{self._count:05d}", items


def check_coco_ids(partition: Partition) -> None:
    """Raise InvalidInput, as `check_ids`, for keys that are no images of COCO's."""
    shards = partition.shards(-(-partition.items // _AT_ONCE) or 1)
    check_ids(str(item["key"]) for items in shards for item in items)


def plan(
    job: Job,
    partition: Partition,
    settings: CaptionSettings,
    shard_size: int,
    skipped: Mapping[str, int],
    make: Callable[..., Job] = plan_job,
) -> Job:
    """Cut the images into shards, and find what an earlier run made of them.

    Args:
      job: without specs.
      partition: the images.
      settings: what they are captioned with.
      shard_size: images in a shard, about, where no earlier run chose the shards.
      skipped: inputs passed over, by kind; images that this run does not take have a shard, too.
      make: plan_job, or foresee_job, which writes nothing.

    Raises:
      InvalidInput: OUTPUT holds another job or cannot be used, or an id comes twice.
    """
    # A key stays in its shard however many images come, so that its row is found again.
    there = partition.items + skipped.get(NOT_TAKEN, 0)
    count = planned_shards(job) or -(-there // shard_size)
    if partition.items > _LARGE * shard_size * count:
        print(
            f"{job.output}: {partition.items} images in the {count} shards of the first run, "
            f"expected about {shard_size} in each; another --output has more shards",
            file=sys.stderr,
        )
    # What was passed over decides no row: a stray text file must not keep a job from going on.
    decides = asdict(settings.asked) | {"format": settings.format, "sidecars": settings.sidecars}
    # Jobs begun before there were any go on.
    decides |= {"copies": True} if settings.copies else {}
    job = make(job, _Shards(partition, count), decides, made_by=settings.model)
    return with_retries(job, settings.retry)
