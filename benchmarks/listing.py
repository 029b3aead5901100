"""Listing of two million objects whose listing calls take 30 ms: four processes ÷ the launcher.

Objects of no bucket: each call sleeps, as for an answer of a store, and then names 100 of them.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.ratio import rate, report
from pipelines.bulk_job import BulkConfig, new_job
from pipelines.listing import make_item
from pipelines.listing_job import ListingJob
from pipelines.tree_walk import Elsewhere, Listed, walk

PREFIXES, OBJECTS = 20_000, 100
LATENCY_S = 0.03
PROCESSES = 4
TARGET = 2.0
_FLAGS = ("--direct_running_mode=multi_processing", f"--direct_num_workers={PROCESSES}")
_BELOW = 20


@dataclass(frozen=True)
class _Prefixes:
    """Numbers with 20 others below each."""

    weight: ClassVar[int] = 1

    def opened(self) -> Callable[[Any], Listed]:
        return self._list

    def _list(self, node: Any) -> Listed:
        time.sleep(LATENCY_S)
        paths = [
            f"s3://bucket/photographs/{node:06d}/{number:06d}.jpg" for number in range(OBJECTS)
        ]
        first = _BELOW * node + 1
        below = range(first, min(first + _BELOW, PREFIXES))
        return Listed(
            [make_item(path[12:], path, "123456-etag") for path in paths], {}, list(below)
        )


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        launcher = _objects_a_second(None)
        job = new_job(BulkConfig(str(Path(scratch) / "captions")))
        workers = _objects_a_second(ListingJob(job, _FLAGS))
    report(
        "listing_by_workers_to_launcher",
        workers / launcher,
        f">={TARGET}",
        f"objects/s of {PROCESSES} processes / of the launcher, {PREFIXES * OBJECTS} objects, "
        f"{1000 * LATENCY_S:.0f} ms a call: {workers:.0f}/{launcher:.0f}",
    )


def _objects_a_second(elsewhere: Elsewhere | None) -> float:
    def work() -> None:
        found = sum(len(listed.items) for listed in walk([0], _Prefixes(), elsewhere))
        if found != PREFIXES * OBJECTS:
            raise RuntimeError(f"listed {found} objects, expected {PREFIXES * OBJECTS}")

    return rate(work, PREFIXES * OBJECTS)
