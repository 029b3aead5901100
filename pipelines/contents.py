"""What a records directory says of itself: its manifest, and the plan and results of its job."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from model import records
from model.errors import CheckFailed, InvalidInput
from pipelines import storage
from pipelines.jobs import JOB_FILE, Job, ShardResult
from pipelines.plan import Plan, find_plan, unplanned_job
from pipelines.publication import shard_info
from pipelines.read_ahead import read_ahead
from pipelines.records_files import read_manifest

# Each waits for a small file.
_THREADS = 8


@dataclass(frozen=True)
class Fault:
    """A file below RECORDS, and what is wrong with it: got and expected."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Expected:
    """A shard that should be there.

    Attributes:
      split: whose it is.
      file: its name below RECORDS.
      info: what is said of it; None where nobody does, since it was never finished.
      result: of the job, if it has one.
    """

    split: str
    file: str
    info: records.ShardInfo | None
    result: ShardResult | None = None

    @property
    def name(self) -> str:
        """As the job calls it."""
        return self.file.removesuffix(records.RECORD_SUFFIX)


@dataclass(frozen=True)
class Contents:
    """The papers of a records directory; what they say is not checked yet.

    Attributes:
      job: with its specs; without where there is no plan.
      plan: None where RECORDS has no _work, or one that cannot be read.
      results: of the job's finished shards, by name.
      manifest: None where it is missing or cannot be read.
      faults: papers that cannot be read.
    """

    job: Job
    plan: Plan | None
    results: Mapping[str, ShardResult]
    manifest: records.Manifest | None
    faults: tuple[Fault, ...]

    @property
    def all_finished(self) -> bool:
        """Whether every shard of the plan has a result."""
        return self.plan is not None and len(self.results) == len(self.job.specs)

    def shards(self) -> Iterator[Expected]:
        """Every shard that should be there.

        A shard's own result counts more than the manifest, which was made from it.
        """
        stated = self.manifest.splits if self.manifest else {}
        if self.plan is None:
            for split, infos in stated.items():
                yield from (Expected(split, info.file, info) for info in infos)
            return
        by_file = {info.file: info for infos in stated.values() for info in infos}
        for split in self.plan.shards:
            for name in self.plan.shard_names(split):
                file = self.job.output_file.format(name=name)
                result = self.results.get(name)
                info = shard_info(result) if result else by_file.get(file)
                yield Expected(split, file, info, result)


def read_contents(output: str) -> Contents:
    """Read the papers of a records directory.

    Raises:
      InvalidInput: neither a readable manifest nor a readable plan.
    """
    storage.check_filesystem(output, "records")
    faults: list[Fault] = []
    job, plan = unplanned_job(output), None
    try:
        if (found := find_plan(output)) is not None:
            job, plan = found
    except InvalidInput as error:
        faults.append(Fault(JOB_FILE, _without_path(error, job.path(JOB_FILE))))
    manifest, path = None, job.path(records.MANIFEST_FILE)
    try:
        manifest = read_manifest(path)
    except InvalidInput as error:
        faults.append(Fault(records.MANIFEST_FILE, _without_path(error, path)))
    except OSError:
        faults.append(Fault(records.MANIFEST_FILE, unreadable(path)))
    if plan is None and manifest is None:
        raise InvalidInput(
            f"{output}: no {records.MANIFEST_FILE} and no {JOB_FILE} of this version, expected "
            "what captionbeam preprocess made; run it again with its flags"
        )
    return Contents(job, plan, dict(_results(job)), manifest, tuple(faults))


def check_is_finished(contents: Contents) -> None:
    """Raises CheckFailed where the manifest is not there yet: the run has not ended."""
    job = contents.job
    if not storage.exists(job.path(records.MANIFEST_FILE)):
        raise CheckFailed(
            f"{job.output} is not finished: {len(contents.results)} of {len(job.specs)} shards are "
            f"there and no {records.MANIFEST_FILE}; go on with {repair_command(job.output)}"
        )


def repair_command(output: str) -> str:
    """What mends a records directory, for a person to copy."""
    return f"`captionbeam preprocess --check {output} --repair`"


def unreadable(path: str) -> str:
    """Why a file cannot be read, in words."""
    return "it cannot be read" if storage.exists(path) else "no such file"


def _results(job: Job) -> Iterator[tuple[str, ShardResult]]:
    found = read_ahead(job.specs, job.noted_result, threads=_THREADS, ahead=4 * _THREADS)
    for spec, result in found:
        if isinstance(result, ShardResult):
            yield spec.name, result


def _without_path(error: InvalidInput, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
