"""Plans a job: cuts its items into shards, and finds what an earlier run in OUTPUT left.

The inputs of an amendable job may change between runs: its specs are called NAME-DIGEST.jsonl, so
that the one from which a finished shard was made stays until the shard is made anew.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from model.errors import InvalidInput
from pipelines import storage
from pipelines.jobs import (
    JOB_FILE,
    LEASE_DIR,
    WORK_DIR,
    Item,
    Job,
    ShardSpec,
    check_name,
    unusable,
)


class Shards(Protocol):
    """Items by shard name, as of a Mapping; looked through more than once."""

    def items(self) -> Iterable[tuple[str, Sequence[Item]]]:
        """(name, items) of each."""


def plan_job(
    job: Job,
    shards: Shards,
    settings: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,
) -> Job:
    """Write the specs of a job, or find that they are those of the run to be resumed.

    Args:
      job: without specs.
      shards: items by shard name; those of an amendable job that has finished shards must have
        the names that `planned_shards` tells.
      settings: everything that decides the output's bytes, as JSON; of those that differ from
        the job found, the first is named.
      made_by: what decides them, too, and may change between the runs of an amendable job.

    Returns:
      The job with its specs.

    Raises:
      InvalidInput: the output directory holds finished shards of another job, cannot be
        written, or its name is a pattern.
    """
    planned, found, wanted = _foresee(job, shards, settings, made_by)
    try:
        if found is None and not _is_finished_in_part(job):
            # Nothing was finished, so nothing is lost by beginning another job.
            _clear(job)
        for spec, (_, items) in zip(planned.specs, shards.items(), strict=True):
            content = _encoded(items)
            if found is None or not _is_written(spec, content):
                # Made again rather than kept: of ten million images they are gigabytes.
                storage.write_bytes(spec.path, content)
        if found != wanted:
            storage.write_json(job.path(JOB_FILE), wanted)
    except (OSError, ValueError) as error:
        raise unusable(job.output, error) from error
    return planned


def foresee_job(
    job: Job,
    shards: Shards,
    settings: Mapping[str, Any],
    made_by: Mapping[str, Any] | None = None,
) -> Job:
    """What `plan_job` returns, or raises, with nothing written."""
    return _foresee(job, shards, settings, made_by)[0]


def _foresee(
    job: Job, shards: Shards, settings: Mapping[str, Any], made_by: Mapping[str, Any] | None
) -> tuple[Job, Any, dict[str, Any]]:
    """The job with its specs; the job found there that it goes on with, or None; job.json."""
    check_name(job.output)
    specs = tuple(_spec(job, name, items, made_by) for name, items in shards.items())
    wanted = {
        "settings": json.loads(json.dumps(settings)),
        "shards": {spec.name: spec.digest for spec in specs},
    }
    try:
        found = storage.read_json(job.path(JOB_FILE))
        if found != wanted and not _is_finished_in_part(job):
            found = None
    except (OSError, ValueError) as error:
        raise unusable(job.output, error) from error
    if found in (None, wanted) or (job.amendable and _same_but_inputs(found, wanted)):
        return replace(job, specs=specs), found, wanted
    raise InvalidInput(
        f"{job.output} holds another job: {_first_difference(found, wanted)}; "
        "take another --output, or the flags of the first run to resume it"
    )


def planned_shards(job: Job) -> int | None:
    """How many shards the job found in OUTPUT has, once one of them was finished; else None."""
    try:
        found = storage.read_json(job.path(JOB_FILE))
        return len(found["shards"]) if found and _is_finished_in_part(job) else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise unusable(job.output, error) from error


def with_retries(job: Job, reasons: Collection[str]) -> Job:
    """The job, with another attempt of every finished shard that has failures of these reasons."""

    def again(spec: ShardSpec) -> ShardSpec:
        result = job.noted_result(spec)
        if result is None or not any(map(result.failed.get, reasons)):
            return spec
        return replace(spec, attempt=result.attempt + 1)

    return replace(job, specs=tuple(map(again, job.specs))) if reasons else job


def delete_old_specs(job: Job) -> None:
    """Remove the items from which shards were made before they were made anew."""
    kept = {spec.path for spec in job.specs}
    there = storage.match(job.path(WORK_DIR, "specs", "*.jsonl"))
    storage.delete(*(path for path in there if path not in kept))


def assign(items: Sequence[Item], num_shards: int) -> list[list[Item]]:
    """Spread items over shards by the hash of their keys; in a shard they stand by key."""
    shards: list[list[Item]] = [[] for _ in range(num_shards)]
    for item in sorted(items, key=lambda item: str(item["key"])):
        shards[hash_of(item) % num_shards].append(item)
    return shards


def hash_of(item: Item) -> int:
    """A number that the item's key alone decides."""
    return int.from_bytes(hashlib.sha256(str(item["key"]).encode()).digest()[:8], "big")


def _spec(
    job: Job, name: str, items: Sequence[Item], made_by: Mapping[str, Any] | None
) -> ShardSpec:
    content = _encoded(items)
    if made_by is not None:
        content += storage.json_line(made_by)
    digest = hashlib.sha256(content).hexdigest()
    return ShardSpec(name, job.spec_path(name, digest), len(items), digest)


def _is_written(spec: ShardSpec, content: bytes) -> bool:
    try:
        return storage.read_bytes(spec.path) == content
    except OSError:
        return False


def _same_but_inputs(found: Any, wanted: Mapping[str, Any]) -> bool:
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        return False
    same_names = found["shards"].keys() == wanted["shards"].keys()
    return same_names and bool(found["settings"] == wanted["settings"])


def _encoded(items: Sequence[Item]) -> bytes:
    """A spec's file."""
    return b"".join(map(storage.json_line, items))


def _is_finished_in_part(job: Job) -> bool:
    """Whether there is a finished shard; a published output has some, whatever _work says."""
    if storage.match(job.done_path("*")):
        return True
    return job.published is not None and storage.exists(job.path(job.published))


def _clear(job: Job) -> None:
    """Remove what is left of a job without a finished shard, whichever it was."""
    found = storage.read_json(job.path(JOB_FILE))
    shards = found["shards"] if isinstance(found, dict) and "shards" in found else ()
    # Before the file that names them, or a kill would leave shards of another job behind.
    for file in (job.output_file, job.failures_file, *job.other_files):
        outputs = {job.path(file.format(name=name)) for name in shards}
        there = storage.match(job.path(file.format(name="*")))
        storage.delete(*(path for path in there if path in outputs))
    for tree in job.trees if shards else ():
        storage.delete(*storage.match(job.path(tree, "**")))
    files = (*storage.match(job.path(WORK_DIR, "*")), *storage.match(job.path(WORK_DIR, "*", "*")))
    kept = job.path(LEASE_DIR) + "/"
    storage.delete(*(path for path in files if not path.startswith(kept)))


def _first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name what differs between the job of an output directory and the one asked for."""
    for name in dict.fromkeys((*wanted["settings"], *found["settings"])):
        there, here = found["settings"].get(name), wanted["settings"].get(name)
        if there != here:
            return f"{name} is {json.dumps(there)} there, {json.dumps(here)} now"
    return "its inputs are others than the ones named now"
