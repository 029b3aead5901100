"""A job: the deterministic shards of one output directory, and what became of them.

OUTPUT/_work/ keeps what makes a job resumable: `job.json` (settings and shard digests),
`specs/NAME.jsonl` (the items of a shard: keys and paths, never pixels), `done/NAME.json` (a
finished shard's ShardResult, written after its files were renamed into place) and, while a
launch holds OUTPUT, `lease/`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.errors import InvalidInput
from pipelines import storage
from pipelines.lease import Lease

WORK_DIR = "_work"
JOB_FILE = f"{WORK_DIR}/job.json"
LEASE_DIR = f"{WORK_DIR}/lease"
# Beam lists and deletes by patterns, in which these do not stand for themselves.
_PATTERN_CHARACTERS = "*?["
Item = Mapping[str, Any]
"""What a shard processes: JSON with at least "key" and "source"."""


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be made: its name, the file with its items, their number and digest."""

    name: str
    path: str
    items: int
    digest: str


@dataclass(frozen=True)
class FileInfo:
    """A finished file: name relative to OUTPUT, size in bytes, SHA-256."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard's items.

    Attributes:
      name: the spec's name.
      digest: the spec's digest.
      inputs: items of the spec; always written + failed.
      written: items that became a row or record.
      failed: items without one, by reason.
      parts_failed: failures of a part of an item (one caption of an image), by reason.
      counts: what else the work counted.
      output: the shard's file.
      failures: its failure rows' file.
    """

    name: str
    digest: str
    inputs: int
    written: int
    failed: Mapping[str, int]
    parts_failed: Mapping[str, int]
    counts: Mapping[str, int]
    output: FileInfo
    failures: FileInfo

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ShardResult":
        """Read what `dataclasses.asdict` made."""
        for name in ("output", "failures"):
            fields[name] = FileInfo(**fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class Job:
    """One stage over one output directory.

    Attributes:
      stage: what failure rows and progress call it.
      output: OUTPUT, on any Beam filesystem.
      output_file: a shard's file below OUTPUT, with {name}.
      failures_file: its failure rows' file below OUTPUT, with {name}.
      specs: the shards.
      lease: the launch's right to write OUTPUT; None where nobody else can.
      published: the file below OUTPUT that says it is complete.
    """

    stage: str
    output: str
    output_file: str
    failures_file: str
    specs: tuple[ShardSpec, ...] = ()
    lease: Lease | None = None
    published: str | None = None

    def path(self, *parts: str) -> str:
        """A path below OUTPUT."""
        return "/".join([self.output.rstrip("/"), *parts])

    def done_path(self, name: str) -> str:
        """Where a finished shard's result lies."""
        return self.path(WORK_DIR, "done", f"{name}.json")

    def result(self, spec: ShardSpec) -> ShardResult | None:
        """The result of a finished shard, or None: not made, or its files are not whole.

        Raises:
          OSError: the output directory cannot be read.
        """
        result = self.noted_result(spec)
        if result is None:
            return None
        whole = all(
            storage.size(self.path(file.file)) == file.bytes
            for file in (result.output, result.failures)
        )
        return result if whole else None

    def noted_result(self, spec: ShardSpec) -> ShardResult | None:
        """The result that was noted for a shard of these items, whatever became of its files.

        Raises:
          OSError: the output directory cannot be read.
        """
        try:
            fields = storage.read_json(self.done_path(spec.name))
            result = None if fields is None else ShardResult.from_json(fields)
        # Cut short or overwritten; making the shard again mends it.
        except (ValueError, LookupError, TypeError):
            return None
        return result if result is not None and result.digest == spec.digest else None


def plan_job(job: Job, shards: Mapping[str, Sequence[Item]], settings: Mapping[str, Any]) -> Job:
    """Write the specs of a job, or find that they are those of the run to be resumed.

    Args:
      job: without specs.
      shards: items by shard name.
      settings: everything that decides the output's bytes, as JSON; of those that differ from
        the job found, the first is named.

    Returns:
      The job with its specs.

    Raises:
      InvalidInput: the output directory holds finished shards of another job, cannot be
        written, or its name is a pattern.
    """
    check_name(job.output)
    specs = tuple(
        ShardSpec(
            name,
            job.path(WORK_DIR, "specs", f"{name}.jsonl"),
            len(items),
            hashlib.sha256(_encoded(items)).hexdigest(),
        )
        for name, items in shards.items()
    )
    wanted = {
        "settings": json.loads(json.dumps(settings)),
        "shards": {spec.name: spec.digest for spec in specs},
    }
    try:
        found = storage.read_json(job.path(JOB_FILE))
        if found != wanted and not _is_finished_in_part(job):
            # Nothing was finished, so nothing is lost by beginning another job.
            _clear(job)
            found = None
        for spec in specs if found in (None, wanted) else ():
            if found is None or read_spec(spec) is None:
                # Made again rather than kept: of ten million images they are gigabytes.
                storage.write_bytes(spec.path, _encoded(shards[spec.name]))
        if found is None:
            storage.write_json(job.path(JOB_FILE), wanted)
    except (OSError, ValueError) as error:
        raise unusable(job.output, error) from error
    if found not in (None, wanted):
        raise InvalidInput(
            f"{job.output} holds another job: {_first_difference(found, wanted)}; "
            "take another --output, or the flags of the first run to resume it"
        )
    return replace(job, specs=specs)


def assign(items: Sequence[Item], num_shards: int) -> list[list[Item]]:
    """Spread items over shards by the hash of their keys; in a shard they stand by key."""
    shards: list[list[Item]] = [[] for _ in range(num_shards)]
    for item in sorted(items, key=lambda item: str(item["key"])):
        digest = hashlib.sha256(str(item["key"]).encode()).digest()
        shards[int.from_bytes(digest[:8], "big") % num_shards].append(item)
    return shards


def failed_by_reason(results: Iterable[ShardResult]) -> dict[str, int]:
    """Failed items of all shards, by reason."""
    return dict(sorted(sum((Counter(result.failed) for result in results), Counter()).items()))


def read_spec(spec: ShardSpec) -> bytes | None:
    """The bytes of a spec's file, or None where they are not those of its digest."""
    try:
        data = storage.read_bytes(spec.path)
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == spec.digest else None


def check_name(output: str) -> None:
    """Raise InvalidInput for an OUTPUT that Beam takes for a pattern."""
    if found := [character for character in _PATTERN_CHARACTERS if character in output]:
        raise InvalidInput(
            f"--output {output}: has {' '.join(found)}, expected a name that is no pattern "
            f"(none of {' '.join(_PATTERN_CHARACTERS)}); take another --output"
        )


def unusable(output: str, error: Exception) -> InvalidInput:
    """What to say of an OUTPUT in which a job can be neither begun nor resumed."""
    return InvalidInput(
        f"{output}: cannot be used ({' '.join(str(error).split())}), expected a directory that "
        "can be written and has free space, or the one of a run to resume; mend it and repeat the "
        "command, or take another --output"
    )


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
    outputs = {job.path(job.output_file.format(name=name)) for name in shards}
    there = storage.match(job.path(job.output_file.format(name="*")))
    # Before the file that names them, or a kill would leave shards of another job behind.
    storage.delete(*(path for path in there if path in outputs))
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
