"""Beam's flags and runners: a pipeline of them, and what may be wrong with either."""

import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners import create_runner
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from model.errors import CaptionbeamError, CheckFailed, InvalidInput
from pipelines import storage
from pipelines.buckets import is_os_error, os_errors

# Beam's bare default tries to download another runner first.
_BEAM_DEFAULTS = ("--runner=FnApiRunner",)
_LOCAL_RUNNERS = (FnApiRunner, SwitchingDirectRunner, BundleBasedDirectRunner)
# The threads in which a local runner stays in touch with its worker processes, and what it says
# when one was killed.
_WORKER_THREADS = ("run_worker", "beam_control_read", "read_grpc_client_inputs")
_WORKER_GONE = re.compile("Channel closed prematurely|Worker subprocess exited")
# Known by its name, since importing it needs the extra `gcp`.
_DATAFLOW, _DASK = "DataflowRunner", "DaskRunner"
# Beam's own flag, which that runner alone heeds.
DRY_RUN = "--dry_run=True"


class WorkerLost(InvalidInput):
    """A worker process of a local runner ended amid its work."""


def check_beam_args(beam_args: Sequence[str], *paths: str) -> None:
    """Give Beam its flags: from here on filesystems have theirs.

    Args:
      beam_args: Beam's own flags.
      paths: files and directories that workers will reach.

    Raises:
      InvalidInput: Beam refuses them or has no such runner, the runner would run what is a dry
        run, or its workers cannot reach one of the paths.
    """
    # Before Beam is asked: to make a pipeline for Dataflow, it looks at buckets.
    runner = _runner_name(beam_args)
    dry = is_dry_run(beam_args)
    if dry and runner != _DATAFLOW:
        raise InvalidInput(f"--dry_run: {runner} runs all the same, expected --runner={_DATAFLOW}")
    local = [path for path in paths if "://" not in path]
    if local and runner == _DATAFLOW and not dry:
        raise InvalidInput(
            f"{local[0]}: on this machine, where the workers of {_DATAFLOW} cannot reach it, "
            "expected gs://… or s3://…"
        )
    make_pipeline(beam_args)


def _runner_name(beam_args: Sequence[str]) -> str:
    with _refusals():
        name = _parse(beam_args).view_as(StandardOptions).runner
        return type(create_runner(name)).__name__


def can_build(beam_args: Sequence[str]) -> bool:
    """Whether the runner of these flags can build a job and not run it."""
    return _runner_name(beam_args) == _DATAFLOW


def is_dry_run(beam_args: Sequence[str]) -> bool:
    """Whether Beam's flags ask that a job be built and not run."""
    return bool(PipelineOptions(list(beam_args)).view_as(TestOptions).dry_run)


def make_pipeline(beam_args: Sequence[str]) -> beam.Pipeline:
    """A pipeline of these flags; raises InvalidInput where Beam refuses them."""
    with _refusals(), os_errors():
        return beam.Pipeline(options=_parse(beam_args))


def _parse(beam_args: Sequence[str]) -> PipelineOptions:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = PipelineOptions([*_BEAM_DEFAULTS, *beam_args])
            # The flags of some runners are known once these are loaded.
            create_runner(options.view_as(StandardOptions).runner)
            # Beam parses a flag when it first asks for it, which may be when shards are made.
            options.get_all_options()
    except SystemExit as error:
        # argparse says its usage on many lines, then what is wrong.
        raise InvalidInput(
            f"Beam: {one_line(said.getvalue().partition(': error: ')[2])}"
        ) from error
    workers = options.view_as(DirectOptions).direct_num_workers
    if workers < 0:
        raise InvalidInput(
            f"--direct_num_workers {workers}, expected at least 1, or 0: one for each core"
        )
    setup = options.view_as(SetupOptions)
    if setup.setup_file is not None:
        setup.setup_file = _setup_file(setup.setup_file)
    return options


@contextmanager
def _refusals() -> Iterator[None]:
    """Say in one line what loading and checking a runner by its name may raise."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, ImportError, OSError) as error:
        raise InvalidInput(f"Beam: {one_line(error)}") from error


def _setup_file(path: str) -> str:
    if not Path(path).is_file():
        raise InvalidInput(
            f"--setup_file {path}: no such file, expected setup.py of a checkout of captionbeam"
        )
    # Beam changes to its directory, which for a bare "setup.py" it takes to be "".
    return storage.absolute_path(path)


def is_local(beam_args: Sequence[str]) -> bool:
    """Whether all workers are this process or end with it."""
    return _ends_with_process(make_pipeline(beam_args))


def shares_process(beam_args: Sequence[str]) -> bool:
    """Whether all workers are threads of this process."""
    pipeline = make_pipeline(beam_args)
    mode = pipeline.options.view_as(DirectOptions).direct_running_mode
    return _ends_with_process(pipeline) and mode != "multi_processing"


def _ends_with_process(pipeline: beam.Pipeline) -> bool:
    # DaskRunner derives from one of them, and its workers may be anywhere.
    return type(pipeline.runner) in _LOCAL_RUNNERS


def spread_thinly(beam_args: Sequence[str]) -> tuple[str, ...]:
    """The flags, with which few elements are spread over all workers of any runner.

    Dask's Create puts 128 elements into a partition, for one worker, unless it is told otherwise.
    """
    flag = "--dask_partition_size"
    is_said = any(argument.partition("=")[0] == flag for argument in beam_args)
    if is_said or type(make_pipeline(beam_args).runner).__name__ != _DASK:
        return tuple(beam_args)
    return (*beam_args, f"{flag}=1")


def runner_error(pipeline: beam.Pipeline, error: Exception) -> CaptionbeamError | None:
    """What to say when a worker is lost, or Dataflow refuses or loses a job; else None."""
    if isinstance(pipeline.runner, _LOCAL_RUNNERS) and _WORKER_GONE.search(str(error)):
        return WorkerLost(
            "a worker process ended amid its work (killed, or out of memory?); see that there is "
            "memory for --direct_num_workers of them, then repeat the command"
        )
    if type(pipeline.runner).__name__ != _DATAFLOW:
        return None
    said = f"{_DATAFLOW}: {one_line(error)}"
    if type(error).__name__ == "DataflowRuntimeException":
        return CheckFailed(f"{said}; see the log of its job, then repeat the command")
    # Of staging: RuntimeError.
    if is_os_error(error) or isinstance(error, RuntimeError):
        return InvalidInput(f"{said}; see that project, region, buckets and credentials are right")
    return None


@contextmanager
def quiet(pipeline: beam.Pipeline) -> Iterator[None]:
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


@contextmanager
def closing_client(pipeline: beam.Pipeline) -> Iterator[None]:
    """Close the connection to a cluster, on which DaskRunner keeps results for as long as it is."""
    try:
        yield
    finally:
        # There is no result where no job was started.
        client = getattr(getattr(pipeline, "result", None), "client", None)
        if client is not None:
            client.close()


def one_line(said: object) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(said).split())
