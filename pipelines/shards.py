"""The shape of every heavy stage: small specs in, finished shards out, one published file.

    specs | Reshuffle | ParDo(ProcessShard(work)) | CombineGlobally(ToList) | ParDo(Publish)

A shard that has a result (pipelines/jobs) is skipped, so the same command goes on where it
stopped and an engine's retries do no harm. One leaf, no tagged outputs, no sinks: some
runners lose those silently.
"""

import base64
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.transforms.combiners import ToListCombineFn

from model.errors import CaptionbeamError, CheckFailed, InvalidInput, NotRun
from pipelines import counters, storage, tally
from pipelines.begun import begun
from pipelines.heaps import freeze_loaded, return_free_memory
from pipelines.jobs import (
    LEASE_DIR,
    WORK_DIR,
    Item,
    Job,
    ShardResult,
    ShardSpec,
    check_name,
    unusable,
)
from pipelines.lease import EXPIRES_AFTER_S, hold
from pipelines.runner import (
    DRY_RUN,
    WorkerLost,
    closing_client,
    is_dry_run,
    is_local,
    make_pipeline,
    one_line,
    quiet,
    runner_error,
)
from pipelines.sink import Sink
from pipelines.watch import shown

# Of a pipeline whose worker processes end amid their work, by an image or for lack of memory, and
# which finishes no shard meanwhile.
_LAUNCHES = 3
# Carries one of our errors through Beam, which keeps only an exception's text, and may quote it;
# Base64 has nothing to quote.
_ERROR_MARK = "captionbeam-error: "


class ShardWork(Protocol):
    """What a stage does with a shard; pickled to the workers, so settings only until setup."""

    def setup(self) -> None:
        """Load what is heavy, once a process (beam.utils.shared.Shared)."""

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Give every item to `sink` exactly once, in order."""


class FileDoFn(beam.DoFn):
    """A DoFn that reaches files; brings the filesystems' flags to where Beam does not (Dask)."""

    def __init__(self, beam_args: Sequence[str] = ()) -> None:
        self._beam_args = tuple(beam_args)

    def setup(self) -> None:
        """Called by the runner in every process."""
        if self._beam_args:
            storage.use_flags(self._beam_args)


class ProcessShard(FileDoFn):
    """ShardSpec → ShardResult; reads, works, writes and renames inside one element."""

    def __init__(self, job: Job, work: ShardWork, beam_args: Sequence[str] = ()) -> None:
        super().__init__(beam_args)
        # The specs arrive as elements; a job of a million shards must not travel in the DoFn.
        self._job = replace(job, specs=())
        self._work = work
        self._ready = False

    def process(self, spec: ShardSpec) -> Iterator[ShardResult]:
        """Make one shard, or find it made."""
        with carried_errors(self._job.output):
            result = self._job.result(spec) or self._make(spec)
        counters.count(result)
        yield result

    def _make(self, spec: ShardSpec) -> ShardResult:
        if self._job.lease is not None:
            self._job.lease.check()
        # Not in Beam's setup: a job whose shards are all there loads no model.
        if not self._ready:
            self._work.setup()
            self._ready = True
        items = storage.read_json_lines(spec.path)
        with begun(self._job, spec.name) as earlier:
            sink = Sink(self._job, spec, tally.begin(self._job.output, spec.name), earlier)
            try:
                self._work.process(items, sink)
                return sink.commit()
            finally:
                sink.abandon()
                freeze_loaded()
                return_free_memory()


class Publish(FileDoFn):
    """All results, in the order of their names → the file that says the output is complete."""

    def __init__(
        self,
        job: Job,
        publish: Callable[[list[ShardResult]], None],
        beam_args: Sequence[str] = (),
    ) -> None:
        super().__init__(beam_args)
        self._output, self._lease, self._publish = job.output, job.lease, publish

    def process(self, results: list[ShardResult]) -> Iterator[int]:
        """Publish; yields the number of shards."""
        with carried_errors(self._output):
            if self._lease is not None:
                self._lease.check()
            self._publish(sorted(results, key=lambda result: result.name))
        yield len(results)


@contextmanager
def hold_output(job: Job, beam_args: Sequence[str]) -> Iterator[Job]:
    """The job with the right to write its output, which ends with the block.

    Raises:
      InvalidInput: another launch holds it, or it cannot be written or read.
    """
    check_name(job.output)
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(
                hold(job.output, job.path(LEASE_DIR), local=is_local(beam_args))
            )
        except OSError as error:
            raise unusable(job.output, error) from error
        with write_errors(job.output):
            yield replace(job, lease=lease)


def run_job(
    job: Job,
    work: ShardWork,
    publish: Callable[[list[ShardResult]], None],
    beam_args: Sequence[str],
) -> counters.Counted | None:
    """Make the shards that are missing, then publish.

    Returns:
      Items written, and failed by reason, as Beam counted them; None where the runner does not
      tell.

    Raises:
      CaptionbeamError: as `work` raised it in whatever process it ran.
      InvalidInput: OUTPUT cannot be written or read, or another launch took over.
      NotRun: --dry_run, and the job could be built.
    """
    with write_errors(job.output):
        _delete_temporary_files(job)
    result = run_again(
        job,
        partial(_run, job, work, publish, beam_args),
        lambda: len(storage.match(job.done_path("*"))),
    )
    with write_errors(job.output):
        # Of a worker that was killed and whose shard another one made, and of a killed launch's
        # workers, which end when they find that they lost the lease.
        _delete_temporary_files(job)
    if is_dry_run(beam_args):
        raise NotRun(
            f"dry run: the job of {len(job.specs)} shards was built and not run; to run it, "
            "leave --dry_run out"
        )
    return counters.counted(result)


def run_again(job: Job, run: Callable[[], Any], count_finished: Callable[[], int]) -> Any:
    """What a run returns; where it loses a worker, of another one, while more gets finished.

    Raises:
      WorkerLost: of three runs in a row none finished anything.
    """
    launches = finished = 0
    while True:
        try:
            return run()
        except WorkerLost:
            with write_errors(job.output):
                now = count_finished()
            launches = 1 if now > finished else launches + 1
            finished = now
            if launches == _LAUNCHES:
                raise
            print("a worker process ended amid its work, which is begun again", file=sys.stderr)


def _run(
    job: Job,
    work: ShardWork,
    publish: Callable[[list[ShardResult]], None],
    beam_args: Sequence[str],
) -> Any:
    with shown(job), run_pipeline(beam_args) as pipeline:
        _apply(pipeline, job, work, publish, beam_args)
    return pipeline.result


def build_job(
    job: Job,
    work: ShardWork,
    publish: Callable[[list[ShardResult]], None],
    beam_args: Sequence[str],
) -> None:
    """Build what `run_job` runs, on a runner that can leave it at that (`can_build`).

    OUTPUT is neither written nor read.

    Raises:
      InvalidInput: it cannot be built, or what workers need cannot be staged.
    """
    beam_args = (*beam_args, DRY_RUN)
    with run_pipeline(beam_args) as pipeline:
        _apply(pipeline, job, work, publish, beam_args)


def _apply(
    pipeline: beam.Pipeline,
    job: Job,
    work: ShardWork,
    publish: Callable[[list[ShardResult]], None],
    beam_args: Sequence[str],
) -> None:
    _ = (
        pipeline
        | "Specs" >> beam.Create(job.specs)
        | "Spread" >> beam.Reshuffle()
        | "Process" >> beam.ParDo(ProcessShard(job, work, beam_args))
        | "Collect" >> beam.CombineGlobally(ToListCombineFn())
        | "Publish" >> beam.ParDo(Publish(job, publish, beam_args))
    )


def check_made(path: str) -> None:
    """Raise CheckFailed where a runner says that it is done and has not made a job's last file."""
    with write_errors(path):
        made = storage.exists(path)
    if not made:
        raise CheckFailed(
            f"{path}: the runner ended without it; see the log of its job, then repeat the command"
        )


def _delete_temporary_files(job: Job) -> None:
    """Remove what a killed run left half written."""
    # Without a lease, nobody says what the filesystem's clock says now.
    before = job.lease.check() - EXPIRES_AFTER_S if job.lease is not None else 0.0
    files = (job.output_file.format(name="*"), job.failures_file.format(name="*"))
    there = map(job.path, (*files, "*", f"{WORK_DIR}/*", f"{WORK_DIR}/*/*"))
    for path in (*there, *job.scratch):
        storage.delete_left_over(f"{path}{storage.TEMPORARY_MARK}*", before)


@contextmanager
def carried_errors(output: str) -> Iterator[None]:
    """Inside a DoFn: give errors that are a user's the form in which `run_pipeline` finds them.

    Args:
      output: what cannot be written or read when an OSError comes.
    """
    try:
        with write_errors(output):
            yield
    except CaptionbeamError as error:
        text = json.dumps({"exit_code": error.exit_code, "message": str(error)})
        raise RuntimeError(_ERROR_MARK + base64.b64encode(text.encode()).decode()) from error


@contextmanager
def write_errors(output: str) -> Iterator[None]:
    """Raise an OSError as InvalidInput that names OUTPUT and says it in one line."""
    try:
        yield
    # Beam's own error is an OSError, too.
    except OSError as error:
        raise InvalidInput(
            f"{output}: cannot be written or read ({one_line(error)}); see that it can and has "
            "free space, then repeat the command"
        ) from error


@contextmanager
def run_pipeline(beam_args: Sequence[str]) -> Iterator[beam.Pipeline]:
    """A pipeline that runs when the block ends; turns our own errors back into themselves."""
    made = make_pipeline(beam_args)
    try:
        with quiet(made), closing_client(made), made as pipeline:
            yield pipeline
    # A runner raises RuntimeError, BeamAssertException, grpc errors …: what it carries counts.
    except Exception as error:
        carried = re.search(_ERROR_MARK + r"([\w+/=]+)", str(error))
        if carried is None:
            if (said := runner_error(made, error)) is not None:
                raise said from error
            raise
        fields = json.loads(base64.b64decode(carried[1]))
        kind = CheckFailed if fields["exit_code"] == CheckFailed.exit_code else InvalidInput
        raise kind(fields["message"]) from error
