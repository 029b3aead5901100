"""The directory of sidecars: whose it may be, and where its files lie until they are whole."""

from contextlib import suppress
from pathlib import Path

from apache_beam.io.filesystems import FileSystems

from model.errors import InvalidInput
from pipelines import storage
from pipelines.apart import check_apart
from pipelines.buckets import os_errors
from pipelines.companions import ATTENTION_DIR, SCRATCH_DIR
from pipelines.jobs import JOB_FILE, WORK_DIR, Job, check_name
from pipelines.listing import scheme

FLAG = "--sidecars"


def check_directory(directory: str, job: Job, inputs: list[str]) -> None:
    """Raise InvalidInput for a directory in which sidecars would overwrite or become inputs.

    Args:
      directory: absolute.
      job: whose it is.
      inputs: of the job.
    """
    check_name(directory, FLAG)
    storage.check_filesystem(directory, FLAG)
    for where in inputs:
        check_apart(where, directory, FLAG)
    output = storage.absolute_path(job.output).rstrip("/")
    ours = (f"{output}/{WORK_DIR}/", f"{output}/{ATTENTION_DIR}/")
    if directory == output or f"{directory}/".startswith(ours):
        raise InvalidInput(
            f"{FLAG} {directory}: holds what the job itself writes; take {output}/sidecars or one "
            "outside --output"
        )
    try:
        found = storage.read_json(job.path(JOB_FILE))
        is_ours = isinstance(found, dict) and found["settings"].get("sidecars") == directory
        taken = not is_ours and _holds_files(directory)
    except (OSError, ValueError, LookupError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{FLAG} {directory}: cannot be used ({said}); take another") from error
    if taken:
        raise InvalidInput(
            f"{FLAG} {directory}: has files that this output's job did not write, expected an "
            "empty directory or none; take another"
        )


def scratch_pattern(directory: str) -> str:
    """Of sidecars that are not whole yet."""
    return f"{directory}/{SCRATCH_DIR}/*"


def remove_scratch(directory: str) -> None:
    """Remove where they lay; in a bucket nothing is left of it anyway."""
    if scheme(directory) is None:
        with suppress(OSError):
            Path(directory, SCRATCH_DIR).rmdir()


@os_errors()
def _holds_files(directory: str) -> bool:
    [found] = FileSystems.match([f"{directory}/**"], limits=[1])
    return bool(found.metadata_list)
