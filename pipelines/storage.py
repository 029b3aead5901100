"""Small files on any Beam filesystem: whole reads, writes by rename, listings."""

import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import InvalidInput
from pipelines import processes
from pipelines.buckets import Writer, mend_s3, os_errors

# Names an unfinished file; unique to the writer, so two never share one.
TEMPORARY_MARK = ".tmp-"
_WRITER = re.compile(re.escape(TEMPORARY_MARK) + r"(?P<host>.+)-(?P<pid>\d+)-(?P<started>\d+)-\d+$")
_NUMBERS = itertools.count()
# More than most photographs have, so that they are read at once.
_PIECE_BYTES = 2**18
# What is written reaches the disk in steps, so that the end of a large file does not wait for all.
_SYNC_BYTES = 2**25
_RAW = {"compression_type": CompressionTypes.UNCOMPRESSED}

mend_s3()


def use_flags(beam_args: Sequence[str]) -> None:
    """Give the filesystems Beam's flags in this process."""
    FileSystems.set_options(PipelineOptions(list(beam_args)))


def temporary_path(path: str) -> str:
    """`PATH.tmp-HOST-PID-START-NUMBER`: another one at every call, in whatever process.

    In a container every run may have the same process id, and a thread that an engine gave up
    may still write while another one makes the same shard.
    """
    writer = processes.this_process()
    name = f"{writer.host}-{writer.pid}-{writer.started}-{next(_NUMBERS)}"
    return f"{path}{TEMPORARY_MARK}{name}"


@os_errors()
def open_write(path: str) -> Writer:
    """Open a binary file for writing, making its directory where there are directories."""
    make_directory(FileSystems.split(path)[0])
    return Writer(FileSystems.create(path, mime_type="application/octet-stream", **_RAW))


@contextmanager
def open_read(path: str) -> Iterator[Any]:
    """A binary file, open for reading from its beginning while the block runs.

    Raises:
      OSError: also from reads inside the block; a bucket may look late whether it is there.
    """
    with os_errors(), FileSystems.open(path, **_RAW) as file:
        yield file


@os_errors()
def rename(source: str, destination: str) -> None:
    """Move a finished file into place, over what may be there; raises on failure."""
    FileSystems.rename([source], [destination])


class TemporaryFile:
    """A file that gets its name when it is whole.

    Args:
      path: the name.
      scratch: directory on the same filesystem that it lies in until then; beside its name when
        omitted.
    """

    def __init__(self, path: str, scratch: str | None = None) -> None:
        self._path = path
        self._temporary = temporary_path(path if scratch is None else f"{scratch}/file")
        self._there = True
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._unsynced_bytes = 0
        try:
            self._file = open_write(self._temporary)
            if scratch is not None:
                make_directory(FileSystems.split(path)[0])
        except BaseException:
            # A full disk may take the name and refuse the rest.
            self._remove()
            raise

    def write(self, data: bytes) -> None:
        """Append; small pieces wait for each other, and now and then all wait for the disk.

        Each write gives up Python's lock, which comes back late while many threads read images.
        """
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _PIECE_BYTES:
            self._hand_on()
        if self._unsynced_bytes >= _SYNC_BYTES:
            self._sync()

    def _hand_on(self) -> None:
        data = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self._file.write(data)
        self._unsynced_bytes += len(data)

    def _sync(self) -> None:
        self._unsynced_bytes = 0
        with suppress(AttributeError, io.UnsupportedOperation):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the file; what was written is then on the disk, not in its cache.

        A rename may reach the disk before the data do, so that a power cut would leave a finished
        name over zeros. An object in a bucket is durable once it is closed.
        """
        try:
            self._hand_on()
            self._sync()
        finally:
            self._file.close()

    def publish(self) -> None:
        """Give the closed file its name, over what may be there."""
        rename(self._temporary, self._path)
        self._there = False

    def discard(self) -> None:
        """Remove what was not published: on a full disk the next attempt needs the space."""
        if self._there:
            # What went wrong before counts; each filesystem's client raises errors of its own.
            with suppress(Exception):
                self._file.close()
            self._remove()

    def _remove(self) -> None:
        self._there = False
        with suppress(Exception):
            delete(self._temporary)


@contextmanager
def replacing(path: str, scratch: str | None = None) -> Iterator[TemporaryFile]:
    """A file that is renamed to PATH when the block ends well, and removed when it does not.

    Args:
      path: its name.
      scratch: as of TemporaryFile.
    """
    file = TemporaryFile(path, scratch)
    try:
        yield file
        file.close()
        file.publish()
    finally:
        file.discard()


def check_filesystem(path: str, name: str) -> None:
    """Raise InvalidInput, naming the argument, when no filesystem serves this path."""
    try:
        FileSystems.get_filesystem(path)
    # The second of a scheme that Beam knows and whose client is not installed.
    except (ValueError, OSError) as error:
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


def read_bytes(path: str, max_bytes: int = -1) -> bytes:
    """Read a whole file, or its first `max_bytes`; raises OSError (Beam's own error is one)."""
    with open_read(path) as file:
        return file.read() if max_bytes < 0 else b"".join(_pieces(file, max_bytes))


def _pieces(file: Any, max_bytes: int) -> Iterator[bytes]:
    """A file's first `max_bytes`; asked for all at once, Python sets memory for as many aside."""
    while max_bytes and (piece := file.read(min(_PIECE_BYTES, max_bytes))):
        yield piece
        max_bytes -= len(piece)


def read_json(path: str) -> Any:
    """The JSON in a file, or None when there is no such file."""
    if not exists(path):
        return None
    return json.loads(read_bytes(path))


def write_bytes(path: str, data: bytes, scratch: str | None = None) -> None:
    """Write a whole file, by rename; `scratch` as of TemporaryFile."""
    with replacing(path, scratch) as file:
        file.write(data)


def concatenate(paths: Iterable[str], destination: str) -> None:
    """Write the files one after the other into one, by rename."""
    with replacing(destination) as output:
        for path in paths:
            with open_read(path) as file:
                shutil.copyfileobj(file, output)


def write_json(path: str, value: Any) -> None:
    """Write JSON with sorted keys, by rename."""
    write_bytes(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def json_line(row: Any) -> bytes:
    """One row of a JSON-lines file; the same row always has the same bytes."""
    return f"{json_text(row)}\n".encode()


def json_text(value: Any) -> str:
    """JSON that UTF-8 can hold; the same value always has the same text."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON may hold and UTF-8 may not.
        return json.dumps(value)
    return text


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


def match(pattern: str) -> list[str]:
    """Paths of the files that match a glob; none is fine."""
    return [file.path for file in list_files(pattern)]


@os_errors()
def list_files(pattern: str) -> list[FileMetadata]:
    """The files that match a glob: path, size and time of writing by the filesystem's clock."""
    return [file for result in FileSystems.match([pattern]) for file in result.metadata_list]


def delete(*paths: str) -> None:
    """Delete files; one that is not there is fine, as another process may have deleted it."""
    try:
        if paths:
            with os_errors():
                FileSystems.delete(list(paths))
    except OSError:
        if any(map(exists, paths)):
            raise


def delete_matching(pattern: str) -> None:
    """Delete the files that match a glob; none is fine."""
    delete(*match(pattern))


def delete_left_over(pattern: str, written_before: float) -> None:
    """Delete those temporary files of a glob that nobody writes any more.

    Args:
      pattern: of temporary files.
      written_before: by the filesystem's clock; what is older has no writer on another host.
    """
    delete(*(file.path for file in list_files(pattern) if _is_left_over(file, written_before)))


def _is_left_over(file: FileMetadata, written_before: float) -> bool:
    writer = _WRITER.search(file.path)
    here = processes.this_process()
    if writer is not None and writer["host"] == here.host and here.started:
        return processes.start_of(int(writer["pid"])) != int(writer["started"])
    return bool(file.last_updated_in_seconds < written_before)
