"""A bulk shard without Beam, with everything that lies beside its rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.caption_rows import Asked
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients, Target
from pipelines.job_plan import plan_job
from pipelines.jobs import Job, ShardResult
from pipelines.sink import Sink
from tests.bulk_fixtures import NAME, VERSION, connect_fake

SETTINGS = CaptionSettings(
    NAME, VERSION, batch_size=2, asked=Asked(nbest=2, explain=True), format="parquet"
)


def caption_shard(
    root: Path, output: str, items: Sequence[dict[str, Any]], **settings: Any
) -> ShardResult:
    """Caption items into ROOT/OUTPUT, with sidecars in ROOT/OUTPUT-txt."""
    asked = replace(SETTINGS, sidecars=f"{root / output}-txt", **settings)
    suffix = asked.format
    job = Job("bulk", str(root / output), f"captions-{{name}}.{suffix}", "failures-{name}.jsonl")
    job = plan_job(replace(job, amendable=True), {"0": items}, {"format": suffix}, made_by={})
    [spec] = job.specs
    work = CaptionShard(Clients(Target("models/fake", None, NAME), connect_fake), asked)
    work.setup()
    sink = Sink(job, spec)
    try:
        work.process(items, sink)
        return sink.commit()
    finally:
        sink.abandon()


def items_of(directory: Path) -> list[dict[str, str]]:
    """With a state, as listings tell."""
    return [
        {"key": path.name, "source": str(path), "state": str(path.stat().st_mtime_ns)}
        for path in sorted(directory.iterdir())
    ]


def tree(*directories: Path) -> dict[str, bytes]:
    """All files by their paths, but those of jobs."""
    return {
        f"{index}/{path.relative_to(top)}": path.read_bytes()
        for index, top in enumerate(directories)
        for path in top.rglob("*")
        if path.is_file() and "_work" not in path.relative_to(top).parts
    }
