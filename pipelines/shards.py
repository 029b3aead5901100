"""The shape of every heavy stage: small specs in, finished shards out, one published file.

    specs | Reshuffle | ParDo(ProcessShard(work)) | CombineGlobally(ToList) | ParDo(Publish)

A shard that has a result (pipelines/jobs) is skipped, so the same command goes on where it
stopped and an engine's retries do no harm. One leaf, no tagged outputs, no sinks: some
runners lose those silently.
"""

import base64
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from typing import Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.combiners import ToListCombineFn

from model.errors import CaptionbeamError, CheckFailed, InvalidInput
from pipelines import storage, tally
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
from pipelines.sink import Sink
from pipelines.watch import shown

# Carries one of our errors through Beam, which keeps only an exception's text, and may quote it;
# Base64 has nothing to quote.
_ERROR_MARK = "captionbeam-error: "
# Beam's bare default tries to download another runner first.
_BEAM_DEFAULTS = ("--runner=FnApiRunner",)
# The threads in which a local runner stays in touch with its worker processes, and what it says
# when one was killed.
_WORKER_THREADS = ("run_worker", "beam_control_read", "read_grpc_client_inputs")
_WORKER_GONE = re.compile("Channel closed prematurely|Worker subprocess exited")
_LOCAL_RUNNERS = (FnApiRunner, SwitchingDirectRunner, BundleBasedDirectRunner)


class ShardWork(Protocol):
    """What a stage does with a shard; pickled to the workers, so settings only until setup."""

    def setup(self) -> None:
        """Load what is heavy, once a process (beam.utils.shared.Shared)."""

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Give every item to `sink` exactly once, in order."""


class ProcessShard(beam.DoFn):
    """ShardSpec → ShardResult; reads, works, writes and renames inside one element."""

    def __init__(self, job: Job, work: ShardWork) -> None:
        # The specs arrive as elements; a job of a million shards must not travel in the DoFn.
        self._job = replace(job, specs=())
        self._work = work
        self._ready = False

    def process(self, spec: ShardSpec) -> Iterator[ShardResult]:
        """Make one shard, or find it made."""
        with carried_errors(self._job.output):
            result = self._job.result(spec) or self._make(spec)
        yield result

    def _make(self, spec: ShardSpec) -> ShardResult:
        if self._job.lease is not None:
            self._job.lease.check()
        # Not in Beam's setup: a job whose shards are all there loads no model.
        if not self._ready:
            self._work.setup()
            self._ready = True
        items = storage.read_json_lines(spec.path)
        sink = Sink(self._job, spec, tally.begin(self._job.output, spec.name))
        try:
            self._work.process(items, sink)
            return sink.commit()
        finally:
            sink.abandon()


class Publish(beam.DoFn):
    """All results, in the order of their names → the file that says the output is complete."""

    def __init__(self, job: Job, publish: Callable[[list[ShardResult]], None]) -> None:
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
    local = isinstance(_make_pipeline(beam_args).runner, _LOCAL_RUNNERS)
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(hold(job.output, job.path(LEASE_DIR), local))
        except OSError as error:
            raise unusable(job.output, error) from error
        with _write_errors(job.output):
            yield replace(job, lease=lease)


def run_job(
    job: Job,
    work: ShardWork,
    publish: Callable[[list[ShardResult]], None],
    beam_args: Sequence[str],
) -> None:
    """Make the shards that are missing, then publish.

    Raises:
      CaptionbeamError: as `work` raised it in whatever process it ran.
      InvalidInput: OUTPUT cannot be written or read, or another launch took over.
    """
    with _write_errors(job.output):
        _delete_temporary_files(job)
    with shown(job), run_pipeline(beam_args) as pipeline:
        _ = (
            pipeline
            | "Specs" >> beam.Create(job.specs)
            | "Spread" >> beam.Reshuffle()
            | "Process" >> beam.ParDo(ProcessShard(job, work))
            | "Collect" >> beam.CombineGlobally(ToListCombineFn())
            | "Publish" >> beam.ParDo(Publish(job, publish))
        )
    with _write_errors(job.output):
        # Those of a killed launch's workers, which end when they find that they lost the lease.
        _delete_temporary_files(job)


def _delete_temporary_files(job: Job) -> None:
    """Remove what a killed run left half written."""
    # Without a lease, nobody says what the filesystem's clock says now.
    before = job.lease.check() - EXPIRES_AFTER_S if job.lease is not None else 0.0
    files = (job.output_file.format(name="*"), job.failures_file.format(name="*"))
    for file in (*files, "*", f"{WORK_DIR}/*", f"{WORK_DIR}/*/*"):
        storage.delete_left_over(job.path(f"{file}{storage.TEMPORARY_MARK}*"), before)


@contextmanager
def carried_errors(output: str) -> Iterator[None]:
    """Inside a DoFn: give errors that are a user's the form in which `run_pipeline` finds them.

    Args:
      output: what cannot be written or read when an OSError comes.
    """
    try:
        with _write_errors(output):
            yield
    except CaptionbeamError as error:
        text = json.dumps({"exit_code": error.exit_code, "message": str(error)})
        raise RuntimeError(_ERROR_MARK + base64.b64encode(text.encode()).decode()) from error


@contextmanager
def _write_errors(output: str) -> Iterator[None]:
    try:
        yield
    # Beam's own error is an OSError, too.
    except OSError as error:
        raise InvalidInput(
            f"{output}: cannot be written or read ({_one_line(error)}); see that it can and has "
            "free space, then repeat the command"
        ) from error


def check_beam_args(beam_args: Sequence[str]) -> None:
    """Raise InvalidInput where Beam refuses its flags or has no such runner."""
    _make_pipeline(beam_args)


@contextmanager
def run_pipeline(beam_args: Sequence[str]) -> Iterator[beam.Pipeline]:
    """A pipeline that runs when the block ends; turns our own errors back into themselves."""
    made = _make_pipeline(beam_args)
    try:
        with _quiet(made), made as pipeline:
            yield pipeline
    # A runner raises RuntimeError, BeamAssertException, grpc errors …: what it carries counts.
    except Exception as error:
        carried = re.search(_ERROR_MARK + r"([\w+/=]+)", str(error))
        if carried is None and _WORKER_GONE.search(str(error)):
            raise InvalidInput(
                "a worker process ended amid its work (killed, or out of memory?); see that there "
                "is memory for --direct_num_workers of them, then repeat the command"
            ) from error
        if carried is None:
            raise
        fields = json.loads(base64.b64decode(carried[1]))
        kind = CheckFailed if fields["exit_code"] == CheckFailed.exit_code else InvalidInput
        raise kind(fields["message"]) from error


def _make_pipeline(beam_args: Sequence[str]) -> beam.Pipeline:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = PipelineOptions([*_BEAM_DEFAULTS, *beam_args])
            # Beam parses a flag when it first asks for it, which may be when shards are made.
            options.get_all_options()
        return beam.Pipeline(options=options)
    except SystemExit as error:
        # argparse says its usage on many lines, then what is wrong.
        raise InvalidInput(
            f"Beam: {_one_line(said.getvalue().partition(': error: ')[2])}"
        ) from error
    # What loading and checking a runner by its name may raise.
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise InvalidInput(f"Beam: {_one_line(error)}") from error


@contextmanager
def _quiet(pipeline: beam.Pipeline) -> Iterator[None]:
    """Silence a local runner, which repeats in log and threads what the exception carries once."""
    logger, hook = logging.getLogger("apache_beam"), threading.excepthook
    level = logger.level

    def say(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or args.thread.name not in _WORKER_THREADS:
            hook(args)

    if isinstance(pipeline.runner, _LOCAL_RUNNERS):
        logger.setLevel(logging.CRITICAL)
        threading.excepthook = say
    try:
        yield
    finally:
        logger.setLevel(level)
        threading.excepthook = hook


def _one_line(said: object) -> str:
    return " ".join(str(said).split())
