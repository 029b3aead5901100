"""What `captionbeam preprocess --check RECORDS [--repair]` does and says."""

from collections.abc import Sequence
from contextlib import nullcontext

from model import records
from model.errors import CheckFailed
from pipelines import storage
from pipelines.contents import repair_command
from pipelines.jobs import JOB_FILE
from pipelines.plan import unplanned_job
from pipelines.published_check import is_of_another_version
from pipelines.records_check import Report, check_records
from pipelines.records_repair import repair_records
from pipelines.runner import check_beam_args
from pipelines.shards import hold_output
from pipelines.wording import some_of

# The names of more shards than these fill a screen.
_NAMED = 20


def check(output: str, beam_args: Sequence[str]) -> None:
    """Print what is wrong with a records directory, a line a file, or that it is sound.

    Args:
      output: RECORDS, on any Beam filesystem.
      beam_args: Beam's own flags, which say how buckets are reached.

    Raises:
      CheckFailed: something is wrong; names what to make again and the command that does.
    """
    check_beam_args(beam_args)
    report = check_records(output)
    _print_findings(report)
    if report.faults:
        raise CheckFailed(f"{output}: faulty: {some_of(report.names, _NAMED)}; {_remedy(report)}")
    print(f"{output} is sound: {_holds(report)}")


def repair(output: str, beam_args: Sequence[str]) -> records.Manifest | None:
    """Print what is wrong, make it again, and say what became of it.

    A run that was interrupted is carried on.

    Returns:
      The new manifest; None where nothing was to do.
    """
    check_beam_args(beam_args)
    job = unplanned_job(output)
    # Where there is no job, there is nothing that another launch could be writing.
    there = storage.exists(job.path(JOB_FILE))
    with hold_output(job, beam_args) if there else nullcontext(job) as held:
        report = check_records(output, unfinished=True)
        _print_findings(report)
        if not report.faults:
            print(f"{output} is sound, nothing to do: {_holds(report)}")
            return None
        done = repair_records(report, beam_args, lease=held.lease)
    print(f"{output}: made again: {some_of(report.names, _NAMED)}")
    if done.changed:
        print(
            f"{some_of(done.changed, _NAMED)}: other bytes than before, so that a photograph or "
            f"the machine has changed since; {records.MANIFEST_FILE} says what is there now"
        )
    return done.manifest


def _print_findings(report: Report) -> None:
    unmade = {shard.file for shard in report.shards if shard.info is None}
    if unmade:
        print(f"{len(unmade)} of {len(report.shards)} shards are not made yet")
    for fault in report.faults:
        if fault.file not in unmade:
            print(fault)
    for file in report.stray:
        print(f"{file}: not in {records.MANIFEST_FILE}, so nothing reads it; remove it")


def _remedy(report: Report) -> str:
    if report.contents.plan is None or is_of_another_version(report.contents):
        return "they cannot be mended: make the records again in another --output"
    return f"mend them with {repair_command(report.contents.job.output)}"


def _holds(report: Report) -> str:
    infos = [shard.info for shard in report.shards if shard.info]
    images, captions, size = (
        sum(getattr(info, unit) for info in infos) for unit in ("records", "captions", "bytes")
    )
    return f"{len(infos)} shards, {images} images, {captions} captions, {size} bytes"
