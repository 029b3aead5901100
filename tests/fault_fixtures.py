"""Faults of a disk or a machine at a chosen moment; imported by tests and by runs to be killed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from model.errors import Reason
from pipelines import storage
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.clients import Clients, Target
from pipelines.manifests import Columns
from pipelines.output_settings import OutputSettings
from pipelines.records_job import preprocess
from tests.bulk_fixtures import NAME, World, connect_fake
from tests.preprocess_fixtures import FakeEncoder, settings

ROOT = Path(__file__).parents[1]

# What a file is for, told from its path; the first that fits.
KINDS = {
    "lease": r"/_work/lease/",
    "specs": r"/_work/specs/",
    "job": r"/_work/job\.json",
    "orphans": r"/_work/annotation_failures\.jsonl",
    "counted vocabulary": r"/_work/vocabulary\.json",
    "shard failures": r"/_work/failures/",
    "done": r"/_work/done/",
    "begun": r"/_work/begun/",
    "strip": r"/attention/",
    "sidecar": r"-txt/",
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


def caption_noted(world: Path, output: str, events: Events) -> None:
    """Caption WORLD/in, some of it tried again, with every step noted."""
    World.reset()
    retry = frozenset({Reason.MISSING_FILE})
    config = BulkConfig(str(world / output), batch_size=4, shard_size=13, retry=retry)
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    with noted(events):
        caption_all(str(world / "in"), Columns(), clients, config)


def caption_with_companions(world: Path, output: str, events: Events) -> None:
    """Caption WORLD/in as Parquet, with strips, and sidecars in WORLD/OUTPUT-txt."""
    World.reset()
    outputs = OutputSettings("parquet", f"{world / output}-txt")
    asked = Asked(explain=True)
    config = BulkConfig(str(world / output), batch_size=2, asked=asked, outputs=outputs)
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    with noted(events):
        caption_all(str(world / "in"), Columns(), clients, config)


STAGES: Mapping[str, Callable[[Path, str, Events], None]] = {
    "preprocess": make_noted,
    "bulk": caption_noted,
    "bulk with companions": caption_with_companions,
}


def killed_runs(
    stage: str, world: Path, runs: Sequence[tuple[str, int, float]]
) -> list[tuple[int, float]]:
    """Run a stage as tests/killed_runs says.

    Args:
      stage: of STAGES.
      world: its inputs and outputs.
      runs: OUTPUT below it, the step before which it kills itself or 0, and seconds after which
        it is killed or 0.

    Returns:
      How each run ended, the signal negative, and after how many seconds.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", stage, str(world), json.dumps(runs)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    return [(code, seconds) for code, seconds in json.loads(finished.stdout.splitlines()[-1])]


def _same(encoder: FakeEncoder) -> FakeEncoder:
    return encoder
