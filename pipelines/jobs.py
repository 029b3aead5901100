"""A job: the deterministic shards of one output directory, and what became of them.

OUTPUT/_work/ keeps what makes a job resumable: `job.json` (settings and shard digests),
`specs/NAME.jsonl` (the items of a shard: keys and paths, never pixels), `done/NAME.json` (a
finished shard's ShardResult, written after its files were renamed into place) and, while a
launch holds OUTPUT, `lease/`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import InvalidInput
from pipelines import storage
from pipelines.lease import Lease

WORK_DIR = "_work"
JOB_FILE = f"{WORK_DIR}/job.json"
LEASE_DIR = f"{WORK_DIR}/lease"
# Beam lists and deletes by patterns, in which these do not stand for themselves.
_PATTERN_CHARACTERS = "*?["
# Enough to tell the versions of one shard's items apart.
_DIGEST_IN_NAME = 16
Item = Mapping[str, Any]
"""What a shard processes: JSON with at least "key" and "source"."""


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be made.

    Attributes:
      name: of the shard.
      path: the file with its items.
      items: their number.
      digest: of the items and of what else makes a result another one.
      attempt: which the result must be of, or of a later one: above 0 where failures are to be
        tried again.
    """

    name: str
    path: str
    items: int
    digest: str
    attempt: int = 0


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
      attempt: the spec's.
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
    attempt: int = 0

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
      amendable: whether its inputs may change after shards were finished.
      other_files: what a shard's file is called under other settings, as `output_file`.
      trees: directories below OUTPUT that are the job's with all that is in them.
      scratch: patterns of files outside OUTPUT whose temporary files are the job's.
    """

    stage: str
    output: str
    output_file: str
    failures_file: str
    specs: tuple[ShardSpec, ...] = ()
    lease: Lease | None = None
    published: str | None = None
    amendable: bool = False
    other_files: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()

    def path(self, *parts: str) -> str:
        """A path below OUTPUT."""
        return "/".join([self.output.rstrip("/"), *parts])

    def done_path(self, name: str) -> str:
        """Where a finished shard's result lies."""
        return self.path(WORK_DIR, "done", f"{name}.json")

    def begun_path(self, name: str) -> str:
        """What is there while a shard of an amendable job is made."""
        return self.path(WORK_DIR, "begun", f"{name}.json")

    def spec_path(self, name: str, digest: str) -> str:
        """Where the items of a shard lie."""
        version = f"-{digest[:_DIGEST_IN_NAME]}" if self.amendable else ""
        return self.path(WORK_DIR, "specs", f"{name}{version}.jsonl")

    def result(self, spec: ShardSpec) -> ShardResult | None:
        """The result of a finished shard, or None: not made, begun anew, or not whole.

        Raises:
          OSError: the output directory cannot be read.
        """
        result = self.noted_result(spec)
        if result is None or result.attempt < spec.attempt:
            return None
        if self.amendable and storage.exists(self.begun_path(spec.name)):
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
        result = self.last_result(spec.name)
        return result if result is not None and result.digest == spec.digest else None

    def last_result(self, name: str) -> ShardResult | None:
        """The result that was noted for a shard of this name, whatever it was made from.

        Raises:
          OSError: the output directory cannot be read.
        """
        try:
            fields = storage.read_json(self.done_path(name))
            return None if fields is None else ShardResult.from_json(fields)
        # Cut short or overwritten; making the shard again mends it.
        except (ValueError, LookupError, TypeError):
            return None


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


def check_name(output: str, flag: str = "--output") -> None:
    """Raise InvalidInput for an OUTPUT, or what a flag names, that Beam takes for a pattern."""
    if found := [character for character in _PATTERN_CHARACTERS if character in output]:
        raise InvalidInput(
            f"{flag} {output}: has {' '.join(found)}, expected a name that is no pattern "
            f"(none of {' '.join(_PATTERN_CHARACTERS)}); take another {flag}"
        )


def unusable(output: str, error: Exception) -> InvalidInput:
    """What to say of an OUTPUT in which a job can be neither begun nor resumed."""
    return InvalidInput(
        f"{output}: cannot be used ({' '.join(str(error).split())}), expected a directory that "
        "can be written and has free space, or the one of a run to resume; mend it and repeat the "
        "command, or take another --output"
    )
