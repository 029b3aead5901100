"""Makes the faulty shards of a records directory again, from what its job kept in _work alone."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from apache_beam.utils.shared import Shared

from model import records
from model.encoder import Encoder
from model.errors import InvalidInput
from pipelines import storage
from pipelines.encoding import GridEncoder
from pipelines.jobs import JOB_FILE, Job, ShardSpec, read_spec
from pipelines.lease import Lease
from pipelines.plan import ORPHANS, TRAIN_SPLIT, VOCABULARY, Plan
from pipelines.published_check import is_of_another_version
from pipelines.records_check import Report
from pipelines.records_files import read_manifest, read_vocabulary
from pipelines.records_job import carry_out
from pipelines.runner import check_beam_args
from pipelines.wording import short


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
      manifest: as it is now.
      changed: files of remade shards whose bytes are not those that the old manifest names.
    """

    manifest: records.Manifest
    changed: tuple[str, ...]


def repair_records(
    report: Report,
    beam_args: Sequence[str],
    make_encoder: Callable[[], GridEncoder] | None = None,
    lease: Lease | None = None,
) -> Repair:
    """Make again what is faulty or missing in a records directory, and nothing else.

    Args:
      report: what was found to be wrong.
      beam_args: Beam's own flags.
      make_encoder: picklable; model.encoder.Encoder as planned when omitted.
      lease: the right to write the directory, if one is held.

    Raises:
      InvalidInput: no plan, damaged specs, or an encoder of other weights.
    """
    check_beam_args(beam_args)
    plan = _check_plan(report)
    job = replace(_readable_job(report, plan), lease=lease)
    make_encoder = make_encoder or partial(Encoder, plan.encoder)
    shared = Shared()
    if report.damaged:
        _check_encoder(shared.acquire(make_encoder), plan)
    # Before the manifest goes: a repair that is killed here is found as one to be done.
    for shard in report.damaged:
        storage.delete_matching(job.done_path(shard.name))
    if _has_fault(report, VOCABULARY):
        _renew_vocabulary(job, plan)
    storage.delete_matching(job.path(records.MANIFEST_FILE))
    carry_out(job, plan, make_encoder, shared, beam_args)
    manifest = read_manifest(job.path(records.MANIFEST_FILE))
    return Repair(manifest, _changed(report, manifest))


def _check_plan(report: Report) -> Plan:
    """The plan, where this version can follow it."""
    contents = report.contents
    output = contents.job.output
    if contents.plan is None:
        raise InvalidInput(
            f"{output}: no readable {JOB_FILE}, from which a shard could be made again; make the "
            "records again in another --output"
        )
    if is_of_another_version(contents):
        raise InvalidInput(
            f"{output}: made by other preprocessing than that of this version of captionbeam; "
            "make the records again in another --output"
        )
    if _has_fault(report, ORPHANS):
        _restore_orphans(contents.job, contents.plan)
    return contents.plan


def _renew_vocabulary(job: Job, plan: Plan) -> None:
    """Have it counted again, or take the published copy of one that was given."""
    if plan.vocabulary is None:
        storage.delete_matching(job.path(VOCABULARY))
        return
    try:
        vocabulary = read_vocabulary(job.path(records.VOCABULARY_FILE))
    except (OSError, InvalidInput):
        vocabulary = None
    if vocabulary is None or vocabulary.digest != plan.vocabulary:
        raise InvalidInput(f"{job.path(VOCABULARY)} {_again(job.output)}")
    storage.write_bytes(job.path(VOCABULARY), vocabulary.to_json().encode())


def _restore_orphans(job: Job, plan: Plan) -> None:
    """Take the rows of captions without an image from failures.jsonl, which begins with them."""
    rows = b""
    if storage.exists(failures := job.path(records.FAILURES_FILE)):
        with storage.open_read(failures) as file:
            rows = b"".join(islice(file, plan.orphans))
    if hashlib.sha256(rows).hexdigest() != plan.orphans_digest:
        raise InvalidInput(f"{job.path(ORPHANS)} {_again(job.output)}")
    storage.write_bytes(job.path(ORPHANS), rows)


def _readable_job(report: Report, plan: Plan) -> Job:
    """The job, its specs with their numbers of items; those that will be read are whole."""
    job = report.contents.job
    needed = {shard.name for shard in report.damaged}
    if _has_fault(report, VOCABULARY):
        needed |= set(plan.shard_names(TRAIN_SPLIT))
    results = report.contents.results
    return replace(
        job,
        specs=tuple(
            _counted(job, spec)
            if spec.name in needed
            else replace(spec, items=results[spec.name].inputs)
            for spec in job.specs
        ),
    )


def _counted(job: Job, spec: ShardSpec) -> ShardSpec:
    data = read_spec(spec)
    if data is None:
        raise InvalidInput(f"{spec.path} {_again(job.output)}")
    return replace(spec, items=len(data.splitlines()))


def _again(output: str) -> str:
    return (
        "is not what its job wrote; run `captionbeam preprocess` with the flags of the first run "
        f"and --output {output}, which writes it again, then repeat this command"
    )


def _check_encoder(encoder: GridEncoder, plan: Plan) -> None:
    if encoder.digest != plan.encoder_digest:
        raise InvalidInput(
            f"encoder weights {plan.encoder.weights}: digest {short(encoder.digest)}, expected "
            f"{short(plan.encoder_digest)} as of the other shards; bring the first weights back"
        )


def _has_fault(report: Report, file: str) -> bool:
    return any(fault.file == file for fault in report.faults)


def _changed(report: Report, manifest: records.Manifest) -> tuple[str, ...]:
    """Files of remade shards that are others than the ones before."""
    before = {shard.file: shard.info for shard in report.damaged if shard.info}
    now = {info.file: info for infos in manifest.splits.values() for info in infos}
    return tuple(file for file, info in before.items() if now[file].sha256 != info.sha256)
