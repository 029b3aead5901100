import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner

from model.errors import CheckFailed, InvalidInput, ItemFailure, Reason
from pipelines import shards, storage
from pipelines.job_plan import plan_job
from pipelines.jobs import Item, Job, ShardResult
from pipelines.lease import EXPIRES_AFTER_S
from pipelines.processes import start_of, this_process
from pipelines.runner import WorkerLost, check_beam_args
from pipelines.shards import ProcessShard, hold_output, run_job
from pipelines.sink import Sink

PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


class Upper:
    """Keys in capitals; fails items that begin with f, ends the job at e; notes its calls."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def setup(self) -> None:
        with self.log.open("a") as file:
            file.write("setup\n")

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        with self.log.open("a") as file:
            file.write(f"process {[item['key'] for item in items]}\n")
        for item in items:
            if item["key"].startswith("e"):
                raise InvalidInput("no server at \"x:1\"; start 'it' \n– then again")
            if item["key"].startswith("f"):
                sink.fail(item, ItemFailure(Reason.EMPTY, "begins with f"))
            else:
                sink.write(item["key"].upper().encode())


class Publish:
    """Names and counts, in the order in which they arrive."""

    def __init__(self, path: Path, error: Exception | None = None) -> None:
        self.path, self.error = path, error

    def __call__(self, results: list[ShardResult]) -> None:
        if self.error is not None:
            raise self.error
        self.path.write_text(json.dumps([[r.name, r.written, dict(r.failed)] for r in results]))


def plan(tmp_path: Path, **shards: str) -> Job:
    job = Job("stage", str(tmp_path / "out"), "{name}.rows", "_work/failures/{name}.jsonl")
    items = {
        name: [{"key": key, "source": key} for key in keys.split()] for name, keys in shards.items()
    }
    return plan_job(job, items, {})


def log(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_shards_are_made_and_published_in_the_order_of_their_names(tmp_path: Path) -> None:
    job = plan(tmp_path, b="x", a="y f1 z", c="")
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert json.loads((tmp_path / "published").read_text()) == [
        ["a", 2, {"empty": 1}],
        ["b", 1, {}],
        ["c", 0, {}],
    ]
    assert (tmp_path / "out" / "a.rows").read_bytes() == b"YZ"
    assert (tmp_path / "out" / "c.rows").read_bytes() == b""


def test_finished_shards_are_neither_made_nor_loaded_for(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x", b="y")
    for _ in range(2):
        run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
        assert json.loads((tmp_path / "published").read_text()) == [["a", 1, {}], ["b", 1, {}]]
    assert sorted(log(tmp_path)) == ["process ['x']", "process ['y']", "setup"]


def test_an_engines_retry_is_harmless(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x f1")
    attempts = [ProcessShard(job, Upper(tmp_path / "log")) for _ in range(2)]
    first, second = (list(attempt.process(job.specs[0])) for attempt in attempts)
    assert first == second
    assert log(tmp_path) == ["setup", "process ['x', 'f1']"]


def left_over(out: Path, writer: str) -> list[Path]:
    (out / "_work" / "done").mkdir(exist_ok=True)
    files = ("a.rows", "manifest.json", "_work/done/a.json", "_work/job.json")
    left = [out / f"{file}.tmp-{writer}" for file in files]
    for path in left:
        path.write_text("half")
    return left


def age(path: Path, seconds: float) -> None:
    """Let a file look as if it had been written that long before."""
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))


def held(job: Job) -> Any:
    return hold_output(replace(job, specs=()), ())


def clean_up(job: Job, tmp_path: Path) -> None:
    """Run a job under a lease, as every stage does."""
    with held(job) as holder:
        job = replace(job, lease=holder.lease)
        run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, here = socket.gethostname(), this_process()
    left = left_over(tmp_path / "out", f"{host}-{ended.pid}-{here.started}-0")
    # The number was given to another process, and in containers every run has the same.
    left += left_over(tmp_path / "out", f"{host}-{os.getpid()}-{here.started - 1}-0")
    left += left_over(tmp_path / "out", f"{host}-{10**30}-1-0")
    others = left_over(tmp_path / "out", "other-7-7-7") + left_over(tmp_path / "out", "nobody")
    for path in others:
        age(path, EXPIRES_AFTER_S + 5)
    clean_up(job, tmp_path)
    assert not [path for path in left + others if path.exists()]


def test_what_another_run_is_writing_stays(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    host, parent = socket.gethostname(), os.getppid()
    theirs = left_over(tmp_path / "out", f"{host}-{parent}-{start_of(parent)}-0")
    theirs += left_over(tmp_path / "out", f"{host}-{os.getpid()}-{this_process().started}-0")
    for path in theirs:
        age(path, 10 * EXPIRES_AFTER_S)
    # Younger than a lease can be silent.
    theirs += left_over(tmp_path / "out", f"other-{host}-{10**30}-1-0")
    theirs += left_over(tmp_path / "out", "nobody")
    clean_up(job, tmp_path)
    assert all(path.read_text() == "half" for path in theirs)


def test_without_a_lease_nobody_knows_what_is_old(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    theirs = left_over(tmp_path / "out", "other-7-7-7")
    for path in theirs:
        age(path, 10 * EXPIRES_AFTER_S)
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert all(path.exists() for path in theirs)


def test_no_two_temporary_files_share_a_name() -> None:
    names = {storage.temporary_path("a") for _ in range(3)}
    for _ in range(2):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, storage.temporary_path("a").encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as said:
            names.add(said.read())
        os.waitpid(child, 0)
    assert len(names) == 5
    host, here = socket.gethostname(), this_process()
    assert all(name.startswith(f"a.tmp-{host}-") for name in names)
    # One of a later process with this one's number differs, too.
    mine = [name for name in names if name.startswith(f"a.tmp-{host}-{here.pid}-{here.started}-")]
    assert len(mine) == 3


class FullDisk:
    """A file that takes nothing."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: bytes) -> None:
        del data
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.file.close()


def fail_write(monkeypatch: pytest.MonkeyPatch) -> None:
    open_write = storage.open_write
    monkeypatch.setattr(
        storage,
        "open_write",
        lambda path: FullDisk(open_write(path)) if "b.rows" in path else open_write(path),
    )


def fail_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = storage.rename

    def renamed(source: str, destination: str) -> None:
        if destination.endswith("b.rows"):
            # As on a real disk: Beam's own error, of many lines.
            return rename(source + "-gone", destination)
        return rename(source, destination)

    monkeypatch.setattr(storage, "rename", renamed)


def fail_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def result(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Job, "result", result)


def fail_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(storage, "delete_left_over", delete)


@pytest.mark.parametrize("fail", [fail_write, fail_rename, fail_result, fail_clean_up])
def test_a_write_error_is_one_line_and_the_same_command_finishes(fail: Any, tmp_path: Path) -> None:
    job = plan(tmp_path, a="x", b="y f1")
    with pytest.MonkeyPatch.context() as monkeypatch:
        fail(monkeypatch)
        with pytest.raises(InvalidInput, match=r"out: cannot be written or read \(.+\)") as caught:
            run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert str(caught.value).startswith(job.output)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "published").exists()
    assert not (tmp_path / "out" / "b.rows").exists()
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert (tmp_path / "out" / "b.rows").read_bytes() == b"Y"
    assert json.loads((tmp_path / "published").read_text()) == [
        ["a", 1, {}],
        ["b", 1, {"empty": 1}],
    ]
    assert not list((tmp_path / "out").rglob("*.tmp-*"))


def test_a_write_error_while_publishing_is_one_line(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    publish = Publish(tmp_path / "published", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InvalidInput, match=r"No space left on device.*free space, then repeat"):
        run_job(job, Upper(tmp_path / "log"), publish, ())


def test_a_shard_whose_result_is_cut_short_is_made_again(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x", b="y")
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    Path(job.done_path("a")).write_text('{"name": "a", ')
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert log(tmp_path).count("process ['x']") == 2
    assert log(tmp_path).count("process ['y']") == 1
    assert job.result(job.specs[0]) is not None


# Beam's own flags and its log.


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--runner=NoSuchRunner", "Beam: Unexpected pipeline runner: NoSuchRunner. Valid values"),
        ("--runner=no.such.Runner", "Beam: No module named 'no'"),
        ("--runner=os.path", "Beam: "),
        ("--runner", "Beam: argument --runner: expected one argument"),
        ("--direct_num_workers=-3", "--direct_num_workers -3, expected at least 1, or 0: one for"),
        ("--num_workers=abc", "Beam: argument --num_workers: invalid int value: 'abc'"),
        ("--direct_running_mode=fast", "Beam: argument --direct_running_mode: invalid choice"),
    ],
)
def test_a_beam_flag_that_cannot_be_used_is_one_line(
    flag: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_beam_args([flag])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_beam_flags_that_can_be_used_pass() -> None:
    check_beam_args([])
    check_beam_args([*PROCESSES, "--runner=DirectRunner", "--job_name=x"])


class Remote(PipelineRunner):
    """A runner that is none of the local ones."""

    def run_pipeline(self, pipeline: Any, options: Any) -> Any:
        return FnApiRunner().run_pipeline(pipeline, options)


class NoteLevel(Publish):
    """Writes down how much Beam logs."""

    def __call__(self, results: list[ShardResult]) -> None:
        del results
        self.path.write_text(str(logging.getLogger("apache_beam").level))


@pytest.mark.parametrize(
    ("runner", "during"),
    [
        ("FnApiRunner", logging.CRITICAL),
        ("DirectRunner", logging.CRITICAL),
        (f"{__name__}.Remote", logging.ERROR),
    ],
)
def test_only_a_local_runner_is_silenced_and_only_while_it_runs(
    runner: str, during: int, tmp_path: Path
) -> None:
    logger = logging.getLogger("apache_beam")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        publish = NoteLevel(tmp_path / "level")
        run_job(plan(tmp_path, a="x"), Upper(tmp_path / "log"), publish, (f"--runner={runner}",))
        assert logger.level == logging.ERROR
        failing = plan(tmp_path / "second", a="e1")
        with pytest.raises(InvalidInput):
            run_job(failing, Upper(tmp_path / "log"), publish, (f"--runner={runner}",))
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
    assert int((tmp_path / "level").read_text()) == during


@pytest.mark.parametrize(
    "beam_args", [(), pytest.param(PROCESSES, marks=pytest.mark.slow)], ids=["one", "processes"]
)
def test_our_own_errors_come_back_whole(
    tmp_path: Path, beam_args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    job = plan(tmp_path, a="x", b="e1")
    with pytest.raises(InvalidInput) as caught:
        run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), beam_args)
    assert str(caught.value) == "no server at \"x:1\"; start 'it' \n– then again"
    assert not (tmp_path / "out" / "b.rows").exists()

    job = plan(tmp_path / "second", a="x")
    publish = Publish(tmp_path / "published", CheckFailed("the ledger does not balance"))
    with pytest.raises(CheckFailed, match=r"^the ledger does not balance$"):
        run_job(job, Upper(tmp_path / "log"), publish, beam_args)


def test_errors_of_others_stay_what_they_are(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    publish = Publish(tmp_path / "published", ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_job(job, Upper(tmp_path / "log"), publish, ())


def test_free_memory_is_returned_after_each_shard_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[list[str]] = []
    monkeypatch.setattr(
        "pipelines.shards.return_free_memory", lambda: returned.append(log(tmp_path)[1:])
    )
    job = plan(tmp_path, one="a b", two="e")
    make = ProcessShard(job, Upper(tmp_path / "log"))
    list(make.process(job.specs[0]))
    with pytest.raises(RuntimeError):
        list(make.process(job.specs[1]))
    assert returned == [
        ["process ['a', 'b']"],
        ["process ['a', 'b']", "process ['e']"],
    ]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_worker_begins_its_shard_again_twice_at_most(
    lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, calls = shards._run, []

    def losing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) <= lost:
            raise WorkerLost("a worker process ended")
        return run(*args)

    monkeypatch.setattr(shards, "_run", losing)
    job = plan(tmp_path, a="x")
    made = Upper(tmp_path / "log"), Publish(tmp_path / "published")
    if lost == 3:
        with pytest.raises(InvalidInput, match="a worker process ended"):
            run_job(job, *made, ())
    else:
        run_job(job, *made, ())
        assert json.loads((tmp_path / "published").read_text()) == [["a", 1, {}]]
    assert len(calls) == min(lost + 1, 3)
    assert capsys.readouterr().err.count("ended amid its work, which is begun again") == min(
        lost, 2
    )


def test_a_forked_worker_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = this_process()
    monkeypatch.setattr("os.getpid", os.getppid)
    forked = this_process()
    assert (forked.pid, forked.started) == (os.getppid(), start_of(os.getppid()))
    monkeypatch.undo()
    assert this_process() == launcher


def test_workers_may_be_lost_as_long_as_shards_get_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"shard{number}" for number in range(6)]
    job = plan(tmp_path, **dict.fromkeys(names, "x"))
    work, published = Upper(tmp_path / "log"), tmp_path / "published"
    run = shards._run
    lost: list[int] = []

    def losing(job: Job, *args: Any) -> Any:
        if len(lost) < len(names) - 1:
            lost.append(len(lost))
            ProcessShard(job, work)._make(job.specs[len(lost) - 1])
            raise WorkerLost("a worker process ended")
        return run(job, *args)

    monkeypatch.setattr(shards, "_run", losing)
    run_job(job, work, Publish(published), ())
    assert len(json.loads(published.read_text())) == len(names)
