"""Small files on any Beam filesystem: whole reads, writes by rename, listings."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import InvalidInput
from pipelines.buckets import Writer, mend_s3, os_errors

# Names an unfinished file; unique to the writer, so two never share one.
TEMPORARY_MARK = ".tmp-"
_WRITER = re.compile(re.escape(TEMPORARY_MARK) + r"(?P<host>.+)-(?P<pid>\d+)$")
_RAW = {"compression_type": CompressionTypes.UNCOMPRESSED}

mend_s3()


def use_flags(beam_args: Sequence[str]) -> None:
    """Give the filesystems Beam's flags in this process."""
    FileSystems.set_options(PipelineOptions(list(beam_args)))


def temporary_path(path: str) -> str:
    """`PATH.tmp-HOST-PID`."""
    return f"{path}{TEMPORARY_MARK}{socket.gethostname()}-{os.getpid()}"


@os_errors()
def open_write(path: str) -> Writer:
    """Open a binary file for writing, making its directory where there are directories."""
    make_directory(FileSystems.split(path)[0])
    return Writer(FileSystems.create(path, mime_type="application/octet-stream", **_RAW))


@os_errors()
def rename(source: str, destination: str) -> None:
    """Move a finished file into place, over what may be there; raises on failure."""
    FileSystems.rename([source], [destination])


def check_filesystem(path: str, name: str) -> None:
    """Raise InvalidInput, naming the argument, when no filesystem serves this path."""
    try:
        FileSystems.get_filesystem(path)
    except ValueError as error:
        raise InvalidInput(
            f"{name} {path}: no filesystem for this scheme; for gs:// install captionbeam[gcp], "
            "for s3:// captionbeam[aws]"
        ) from error


def absolute_path(path: str) -> str:
    """A local path made absolute, for workers with another current directory."""
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100


@os_errors()
def exists(path: str) -> bool:
    """Whether a file or directory is there."""
    return bool(FileSystems.exists(path))


@os_errors()
def size(path: str) -> int | None:
    """Size of a file in bytes, or None when it is not there."""
    if not FileSystems.exists(path):
        return None
    return int(FileSystems.get_filesystem(path).size(path))


@os_errors()
def read_bytes(path: str, max_bytes: int = -1) -> bytes:
    """Read a whole file, or its first `max_bytes`; raises OSError (Beam's own error is one)."""
    with FileSystems.open(path, **_RAW) as file:
        return file.read() if max_bytes < 0 else file.read(max_bytes)


def read_json(path: str) -> Any:
    """The JSON in a file, or None when there is no such file."""
    if not exists(path):
        return None
    return json.loads(read_bytes(path))


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file under a temporary name, then rename."""
    temporary = temporary_path(path)
    with open_write(temporary) as file:
        file.write(data)
    rename(temporary, path)


def concatenate(paths: Iterable[str], destination: str) -> None:
    """Write the files one after the other into one, by rename."""
    temporary = temporary_path(destination)
    with open_write(temporary) as output:
        for path in paths:
            with os_errors(), FileSystems.open(path, **_RAW) as file:
                shutil.copyfileobj(file, output)
    rename(temporary, destination)


def write_json(path: str, value: Any) -> None:
    """Write JSON with sorted keys, by rename."""
    write_bytes(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def write_json_lines(path: str, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, by rename."""
    write_bytes(path, b"".join(json_line(row) for row in rows))


def json_line(row: Any) -> bytes:
    """One row of a JSON-lines file; the same row always has the same bytes."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON may hold and UTF-8 may not.
        return (json.dumps(row) + "\n").encode()


def read_json_lines(path: str) -> list[Any]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in read_bytes(path).splitlines() if line]


def make_directory(path: str) -> None:
    """Make a directory and its parents; none is needed in a bucket."""
    if path and FileSystems.get_filesystem(path).has_dirs() and not FileSystems.exists(path):
        try:
            FileSystems.mkdirs(path)
        except OSError:
            # Another worker made it between the look and the call.
            if not FileSystems.exists(path):
                raise


@os_errors()
def match(pattern: str) -> list[str]:
    """Paths of the files that match a glob; none is fine."""
    found = FileSystems.match([pattern])
    return [metadata.path for result in found for metadata in result.metadata_list]


def delete_matching(pattern: str) -> None:
    """Delete the files that match a glob; none is fine."""
    _delete(match(pattern))


def delete_left_over(pattern: str) -> None:
    """Delete those temporary files of a glob that nobody writes any more.

    A file of another host may be in the making, so it stays.
    """
    _delete([path for path in match(pattern) if _is_left_over(path)])


@os_errors()
def _delete(paths: list[str]) -> None:
    if paths:
        FileSystems.delete(paths)


def _is_left_over(path: str) -> bool:
    """Whether its writer ran on this host and has ended."""
    writer = _WRITER.search(path)
    if writer is None or writer["host"] != socket.gethostname():
        return False
    # In a container every run may have the same id, and this one has written nothing yet.
    return int(writer["pid"]) == os.getpid() or not _is_alive(int(writer["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
