"""Progress of a job, told from its finished shards and from what this process has begun."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model import progress
from model.errors import ItemFailure, Reason
from pipelines import storage, tally, watch
from pipelines.job_plan import plan_job
from pipelines.jobs import Item, Job, ShardResult
from pipelines.shards import ProcessShard, run_job
from pipelines.sink import Sink
from pipelines.watch import ShardProgress
from tests.test_model_progress import Clock, Terminal
from tests.test_pipelines_shards import PROCESSES, Publish, Upper, plan


@pytest.fixture(autouse=True)
def _nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_WATCHED", {})


def wait_for(path: Path) -> None:
    """Until another thread or process has made a file."""
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


class Noted(io.StringIO):
    """Makes a file as soon as something was written that has `text` in it."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__()
        self.text, self.path = text, path

    def write(self, said: str) -> int:
        count = super().write(said)
        if self.text in said:
            self.path.touch()
        return count


class NotedTerminal(Noted, Terminal):
    """The same, live."""


class Waits(Upper):
    """Ends when the progress line was seen."""

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        super().process(items, sink)
        wait_for(self.log.parent / "seen")


class PublishLate(Publish):
    """Publishes when the progress line was seen."""

    def __call__(self, results: list[ShardResult]) -> None:
        wait_for(self.path.parent / "seen")
        super().__call__(results)


def finish(job: Job, index: int) -> None:
    """Make a shard as a worker in another process does: nothing is tallied here."""
    spec = job.specs[index]
    items = storage.read_json_lines(spec.path)
    sink = Sink(job, spec)
    Upper.process(Upper(Path(job.output).parent / "log"), items, sink)
    sink.commit()


def count(monkeypatch: pytest.MonkeyPatch, function: str) -> list[str]:
    """The paths with which a function of `storage` is called from now on."""
    called: list[str] = []
    original = getattr(storage, function)

    def counted(path: str) -> Any:
        called.append(path)
        return original(path)

    monkeypatch.setattr(storage, function, counted)
    return called


def lines(stream: io.StringIO) -> list[str]:
    said = stream.getvalue().splitlines()
    stream.seek(0)
    stream.truncate()
    return said


def test_shards_that_others_finish_are_counted_when_they_are_finished(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x y", b="f1 z y", c="q")
    clock, stream = Clock(), io.StringIO()
    shown = ShardProgress(job, stream, clock)
    clock.now += 30
    shown.refresh()
    finish(job, 1)
    clock.now += 30
    shown.refresh()
    finish(job, 0)
    finish(job, 2)
    clock.now += 30
    shown.refresh()
    shown.close()
    assert lines(stream) == [
        "stage: 0 of 6 images, 0.0 images/s, 0 of 3 shards, 0 failed",
        "stage: 3 of 6 images, 0.1 images/s, 60 s left, 1 of 3 shards, 1 failed",
        "stage: 6 of 6 images, 0.1 images/s, 0 s left, 3 of 3 shards, 1 failed",
    ]


def test_what_this_process_has_begun_is_counted_item_by_item(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x y", b="f1 z y w", c="q")
    finish(job, 2)
    clock, stream = Clock(), io.StringIO()
    shown = ShardProgress(job, stream, clock)

    class Half(Upper):
        def process(self, items: Sequence[Item], sink: Sink) -> None:
            super().process(items[:2], sink)
            clock.now += 30
            shown.refresh()
            super().process(items[2:], sink)

    process = ProcessShard(job, Half(tmp_path / "log"))
    list(process.process(job.specs[1]))
    clock.now += 30
    shown.refresh()
    list(process.process(job.specs[0]))
    shown.close()
    assert lines(stream) == [
        # The one that was finished before is done, and in neither rate nor time left.
        "stage: 3 of 7 images, 0.1 images/s, 60 s left, 1 of 3 shards, 1 failed",
        "stage: 5 of 7 images, 0.1 images/s, 30 s left, 2 of 3 shards, 1 failed",
        "stage: 7 of 7 images, 0.1 images/s, 0 s left, 3 of 3 shards, 1 failed",
    ]


def test_a_shard_that_failed_and_is_made_again_counts_once(tmp_path: Path) -> None:
    job = plan(tmp_path, a="f1 y e1", b="x")
    clock, stream = Clock(), io.StringIO()
    shown = ShardProgress(job, stream, clock)
    with pytest.raises(RuntimeError, match="captionbeam-error"):
        list(ProcessShard(job, Upper(tmp_path / "log")).process(job.specs[0]))
    clock.now += 30
    shown.refresh()

    class Kind(Upper):
        def process(self, items: Sequence[Item], sink: Sink) -> None:
            for item in items:
                sink.fail(item, ItemFailure(Reason.EMPTY, "again"))

    list(ProcessShard(job, Kind(tmp_path / "log")).process(job.specs[0]))
    clock.now += 30
    shown.refresh()
    assert [line.partition("images/s")[0] + line[-25:] for line in lines(stream)] == [
        "stage: 2 of 4 images, 0.1 , 0 of 2 shards, 1 failed",
        "stage: 3 of 4 images, 0.1 , 1 of 2 shards, 3 failed",
    ]


def test_a_damaged_shard_that_is_made_again_is_not_counted_twice(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x y", b="z")
    finish(job, 0)
    Path(job.path("a.rows")).unlink()
    clock, stream = Clock(), io.StringIO()
    shown = ShardProgress(job, stream, clock)
    list(ProcessShard(job, Upper(tmp_path / "log")).process(job.specs[0]))
    clock.now += 30
    shown.refresh()
    assert lines(stream) == ["stage: 2 of 3 images, 0.0 images/s, 1 of 2 shards, 0 failed"]


def test_a_result_is_read_once_and_a_bucket_is_not_listed_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan(tmp_path, **{f"s{number}": "x f1" for number in range(8)})
    for index in range(6):
        finish(job, index)
    monkeypatch.setattr(watch, "_READS_A_LOOK", 4)
    reads, looks = count(monkeypatch, "read_json"), count(monkeypatch, "match")
    clock, stream = Clock(), Terminal()
    shown = ShardProgress(job, stream, clock)
    for _ in range(60):
        clock.now += 0.5
        shown.refresh()
    finish(job, 6)
    shown.close()
    assert len(reads) == len(set(reads)) == 7
    assert len(looks) == 1 + 30 / watch._LOOK_EVERY_S + 1
    assert stream.getvalue().endswith(
        "14 of 16 images, 0.1 images/s, 30 s left, 7 of 8 shards, 7 failed\n"
    )


def test_a_look_that_fails_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = plan(tmp_path, a="x")
    clock, stream = Clock(), io.StringIO()

    def no_network(_: str) -> None:
        raise ValueError("a client's own error")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "match", no_network)
        shown = ShardProgress(job, stream, clock)
    finish(job, 0)
    clock.now += 30
    shown.refresh()
    assert lines(stream) == [
        "stage: 1 of 1 images, 0.0 images/s, 0 s left, 1 of 1 shards, 0 failed"
    ]


def test_a_job_shows_its_line_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = NotedTerminal("stage: ", tmp_path / "seen")
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "LIVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(watch, "LIVE_INTERVAL_S", 0.001)
    job = plan(tmp_path, a="x f1", b="y")
    run_job(job, Waits(tmp_path / "log"), Publish(tmp_path / "published"), ())
    *_, last = stream.getvalue().split("\r\x1b[2K")
    assert last.startswith("stage: 3 of 3 images, ")
    assert last.endswith(", 2 of 2 shards, 1 failed\n")
    assert tally._WATCHED == {}


def test_workers_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("LIVE_INTERVAL_S", "PLAIN_INTERVAL_S"):
        monkeypatch.setattr(progress, name, 0.0)
    job = plan(tmp_path, a="x f1")
    list(ProcessShard(job, Upper(tmp_path / "log")).process(job.specs[0]))
    assert capfd.readouterr() == ("", "")
    assert tally._WATCHED == {}


@pytest.mark.slow
def test_worker_processes_are_watched_from_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(watch, "LIVE_INTERVAL_S", 0.01)
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 0.0)
    job = plan(tmp_path, a="x f1", b="y", c="z")
    stream = Noted("stage: 4 of 4", tmp_path / "seen")
    monkeypatch.setattr("sys.stderr", stream)
    run_job(job, Upper(tmp_path / "log"), PublishLate(tmp_path / "published"), PROCESSES)
    assert capfd.readouterr() == ("", "")
    said = lines(stream)
    assert said[0].startswith("stage: 0 of 4 images, ")
    assert said[-1].startswith("stage: 4 of 4 images, ")
    assert said[-1].endswith(", 3 of 3 shards, 1 failed")


def test_a_job_with_no_items_has_a_line_too(tmp_path: Path) -> None:
    job = plan_job(Job("stage", str(tmp_path / "out"), "{name}.rows", "{name}.bad"), {}, {})
    clock, stream = Clock(), io.StringIO()
    shown: Any = ShardProgress(job, stream, clock)
    clock.now += 30
    shown.refresh()
    assert lines(stream) == ["stage: 0 of 0 images, 0.0 images/s, 0 of 0 shards, 0 failed"]
