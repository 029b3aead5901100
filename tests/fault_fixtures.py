"""Faults of a disk or a machine at a chosen moment; imported by tests and by runs to be killed."""

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines import storage
from pipelines.records_job import preprocess
from tests.preprocess_fixtures import FakeEncoder, settings

# What a file is for, told from its path; the first that fits.
KINDS = {
    "lease": r"/_work/lease/",
    "specs": r"/_work/specs/",
    "job": r"/_work/job\.json",
    "orphans": r"/_work/annotation_failures\.jsonl",
    "counted vocabulary": r"/_work/vocabulary\.json",
    "shard failures": r"/_work/failures/",
    "done": r"/_work/done/",
    "shard": r"\.tfrecord|/captions-",
    "failures": r"/failures",
    "vocabulary": r"/vocabulary\.json",
    "manifest": r"/manifest\.json|/summary\.json",
}


class Events:
    """Every step of writing a file, in order; `act` is called at the step `at`, before it."""

    def __init__(self, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.at, self.act = at, act
        self.labels: list[str] = []

    def note(self, step: str, path: str) -> None:
        kind = next((name for name, pattern in KINDS.items() if re.search(pattern, path)), path)
        self.labels.append(f"{step} {kind}")
        if len(self.labels) == self.at:
            self.act()


class NotedFile:
    """A file that notes what is done with it."""

    def __init__(self, file: Any, path: str, events: Events) -> None:
        self.file, self.path, self.events = file, path, events
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, data: bytes) -> None:
        self.events.note("write", self.path)
        self.file.write(data)

    def close(self) -> None:
        try:
            if not self.file.closed:
                self.events.note("close", self.path)
        finally:
            self.file.close()


class NotedEncoder(FakeEncoder):
    """Notes its calls, too."""

    def __init__(self, log: Path, events: Events) -> None:
        super().__init__(log)
        self.events = events

    def __call__(self, images: Any, extents: Any = None) -> Any:
        self.events.note("encode", "images")
        return super().__call__(images, extents)


@contextmanager
def noted(events: Events) -> Iterator[None]:
    """All that `storage` writes in this process is noted while the block runs."""
    open_write, rename = storage.open_write, storage.rename

    def noted_open(path: str) -> Any:
        events.note("open", path)
        return NotedFile(open_write(path), path, events)

    def noted_rename(source: str, destination: str) -> None:
        events.note("rename", destination)
        rename(source, destination)

    with (
        mock.patch.object(storage, "open_write", noted_open),
        mock.patch.object(storage, "rename", noted_rename),
    ):
        yield


def fail(number: int) -> None:
    """Raise an error of the disk."""
    raise OSError(number, os.strerror(number))


def kill() -> None:
    """End this process as the kernel does when memory is out."""
    os.kill(os.getpid(), signal.SIGKILL)


def make_noted(world: Path, output: str, events: Events, beam_args: Sequence[str] = ()) -> None:
    """Preprocess with every step noted."""
    # An encoder is pickled by value; the events must stay those of this process.
    encoder = NotedEncoder(world / f"{output}.log", events)
    with noted(events):
        preprocess(settings(world, output, shard_size=3), beam_args, partial(_same, encoder))


def _same(encoder: FakeEncoder) -> FakeEncoder:
    return encoder
