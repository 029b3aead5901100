"""One launch at a time on one OUTPUT; nobody here waits for a clock."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import captionbeam
from model.errors import InvalidInput
from pipelines import lease as leases
from pipelines import pulse, storage
from pipelines.job_plan import plan_job
from pipelines.jobs import Job
from pipelines.lease import EXPIRES_AFTER_S, Lease, hold
from pipelines.processes import Process, start_of, this_process
from pipelines.pulse import BEAT_EVERY_S
from pipelines.shards import ProcessShard, Publish, hold_output, run_job
from pipelines.sink import Sink
from pipelines.word_counts import write_vocabulary
from tests.bulk_fixtures import World, write_photos
from tests.preprocess_fixtures import FakeEncoder, write_split
from tests.test_pipelines_bulk_job import caption
from tests.test_pipelines_shards import Publish as PublishNames
from tests.test_pipelines_shards import Upper

ELSEWHERE = Process("elsewhere", "another boot", 7, 99)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "leases"


def take(directory: Path, local: bool = True) -> Any:
    return hold("OUT", str(directory), local)


def announce(directory: Path, age_s: float = 0, **changes: Any) -> Lease:
    """The lease of another launch, whose file was written so long ago."""
    fields = {"process": ELSEWHERE, "since": 0.0, "local": True, "held": True, **changes}
    lease = Lease("OUT", str(directory), f"token-{len(files(directory))}", **fields)
    lease.beat()
    grow_old(lease, age_s)
    return lease


def grow_old(lease: Lease, age_s: float) -> None:
    path = Path(lease.path)
    written = path.stat().st_mtime - age_s
    os.utime(path, (written, written))


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_a_held_output_is_refused_with_who_holds_it_and_until_when(directory: Path) -> None:
    with take(directory):
        before = files(directory)
        with pytest.raises(InvalidInput) as caught, take(directory):
            pytest.fail("two hold it")
        assert files(directory) == before
    assert re.fullmatch(
        rf"OUT is held by another launch \(process {os.getpid()} on "
        rf"{re.escape(os.uname().nodename)}"
        r", since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\), whose lease expires in 1[12]\d s unless it "
        r"is renewed; wait for that launch or stop it, then repeat the command",
        str(caught.value),
    )


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ZeroDivisionError()])
def test_a_lease_ends_with_its_block_however_it_ends(
    directory: Path, error: BaseException | None
) -> None:
    with suppress(KeyboardInterrupt, ZeroDivisionError), take(directory) as lease:
        assert files(directory) == [f"{lease.token}.json"]
        if error is not None:
            raise error
    assert files(directory) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


@pytest.mark.parametrize("since", [0.0, 4e9])
def test_another_hosts_lease_expires_when_it_was_silent_whatever_its_clock_says(
    directory: Path, since: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nor does it matter what our own clock says.
    monkeypatch.setattr(leases.time, "time", lambda: 4e9 - since)
    other = announce(directory, EXPIRES_AFTER_S - 5, since=since)
    who = r"\(process 7 on elsewhere, .* expires in [45] s"
    with pytest.raises(InvalidInput, match=who), take(directory):
        pytest.fail("it had not expired")
    grow_old(other, 10)
    with take(directory) as lease:
        assert files(directory) == [f"{lease.token}.json"]


def ended_process() -> Process:
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = replace(this_process(), pid=ended.pid, started=start_of(ended.pid) or 0)
    assert not process.has_ended()
    ended.communicate(b"\n")
    return process


def reused_number() -> Process:
    return replace(this_process(), started=this_process().started - 1)


def zombie() -> Iterator[Process]:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    started = start_of(child.pid) or 0
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield replace(this_process(), pid=child.pid, started=started or 1)
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("dead", [ended_process, reused_number])
def test_a_lease_is_free_at_once_when_its_holder_of_this_host_is_dead(
    directory: Path, dead: Any
) -> None:
    other = announce(directory, process=dead())
    with take(directory) as lease:
        assert lease.supersedes == (other.token,)
        assert files(directory) == [f"{lease.token}.json"]


def test_a_holder_that_nobody_waits_for_is_dead(directory: Path) -> None:
    for process in zombie():
        announce(directory, process=process)
        with take(directory):
            pass


@pytest.mark.parametrize(
    ("process", "local"),
    [
        # Another container or boot under the same name, whose processes are not seen from here.
        (replace(this_process(), system="another", pid=10**9), True),
        (replace(this_process(), host="another", pid=10**9), True),
        # A system that does not show its processes.
        (replace(this_process(), system="", pid=10**9), True),
        # The workers of a cluster go on without their launcher.
        (replace(this_process(), pid=10**9), False),
    ],
)
def test_a_holder_of_whom_nothing_is_known_keeps_its_lease_until_it_expires(
    directory: Path, process: Process, local: bool
) -> None:
    other = announce(directory, process=process, local=local)
    with pytest.raises(InvalidInput, match="is held by another launch"), take(directory):
        pytest.fail("taken from one that may be alive")
    grow_old(other, EXPIRES_AFTER_S + 5)
    with take(directory):
        pass


def test_a_file_that_is_no_lease_counts_until_it_is_old(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_PAUSE_S", 0.0)
    other = announce(directory)
    Path(other.path).write_text("{")
    with pytest.raises(InvalidInput, match=r"another launch \(unknown\)"), take(directory):
        pytest.fail("taken from one that may be alive")
    grow_old(other, EXPIRES_AFTER_S + 5)
    with take(directory):
        pass


def test_of_many_launches_at_the_same_moment_one_holds(directory: Path) -> None:
    count = 6
    for _ in range(3):
        start, end = threading.Barrier(count), threading.Barrier(count)
        holding: list[Lease] = []
        refused: list[str] = []

        def launch(
            start: Any = start, end: Any = end, holding: Any = holding, refused: Any = refused
        ) -> None:
            start.wait()
            try:
                with take(directory) as lease:
                    holding.append(lease)
                    end.wait()
            except InvalidInput as error:
                refused.append(str(error))
                end.wait()

        threads = [threading.Thread(target=launch) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(holding), len(refused)) == (1, count - 1)
        assert files(directory) == []


def test_a_launch_that_comes_between_announcing_and_looking_is_seen(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Lease.beat
    calls: list[Lease] = []

    def beat_then_other(lease: Lease) -> None:
        beat(lease)
        calls.append(lease)
        if len(calls) == 1:
            announce(directory)

    monkeypatch.setattr(Lease, "beat", beat_then_other)
    with pytest.raises(InvalidInput, match="process 7 on elsewhere"), take(directory):
        pytest.fail("two hold it")
    assert files(directory) == ["token-1.json"]


def test_a_launch_that_slept_between_looking_and_taking_finds_itself_superseded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Lease.beat
    second: list[Lease] = []

    def slow_beat(lease: Lease) -> None:
        if lease.held and not second:
            grow_old(lease, EXPIRES_AFTER_S + 1)
            second.append(lease)
            second.append(stack.enter_context(take(directory)))
        beat(lease)

    monkeypatch.setattr(Lease, "beat", slow_beat)
    with ExitStack() as stack:
        with pytest.raises(InvalidInput, match="took over"), take(directory):
            pytest.fail("two hold it")
        assert files(directory) == [f"{second[1].token}.json"]
        second[1].check()


# What the holder does while it holds.


class Wakes:
    """In place of an event: wakes the beating thread so many times, then ends it."""

    def __init__(self, times: int) -> None:
        self.times, self.waited = times, []  # type: int, list[float]

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        return len(self.waited) > self.times


def written(lease: Lease) -> float:
    return Path(lease.path).stat().st_mtime


def test_the_launcher_beats(directory: Path) -> None:
    with take(directory) as lease:
        content = Path(lease.path).read_text()
        assert json.loads(content)["held"] is True
        grow_old(lease, 50)
        then = written(lease)
        wakes = Wakes(1)
        leases._beat(lease, wakes)  # type: ignore[arg-type]
        assert wakes.waited == [BEAT_EVERY_S] * 2
        assert written(lease) > then + 40
        assert Path(lease.path).read_text() == content
    assert EXPIRES_AFTER_S > 3 * BEAT_EVERY_S


def test_a_beat_that_fails_is_followed_by_another(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Lease.beat
    calls: list[Lease] = []

    def failing(lease: Lease) -> None:
        calls.append(lease)
        if len(calls) == 1:
            raise OSError("no network")
        beat(lease)

    with take(directory) as lease:
        grow_old(lease, 50)
        then = written(lease)
        monkeypatch.setattr(Lease, "beat", failing)
        leases._beat(lease, Wakes(2))  # type: ignore[arg-type]
        assert written(lease) > then + 40


def test_a_lease_that_was_taken_over_is_not_written_again_and_ends_the_work(
    directory: Path, tmp_path: Path
) -> None:
    job, spec = planned(tmp_path)
    with take(directory) as first:
        sink = Sink(replace(job, lease=first), spec)
        sink.write(b"x")
        grow_old(first, EXPIRES_AFTER_S + 5)
        with take(directory) as second:
            wakes = Wakes(9)
            leases._beat(first, wakes)  # type: ignore[arg-type]
            assert len(wakes.waited) == 1
            assert files(directory) == [f"{second.token}.json"]
            # The launcher's process need not wait until it would look.
            with pytest.raises(InvalidInput) as caught:
                sink.write(b"y")
            assert str(caught.value) == (
                f"OUT: another launch ({second}) took over, because this one gave no sign of life "
                "for 120 s; leave OUTPUT to that one"
            )
            second.check()
        sink.abandon()
        with pytest.raises(InvalidInput, match="holds it no longer, another one took over and has"):
            first.check()


def test_a_late_beat_does_not_give_a_lost_lease_back(directory: Path) -> None:
    first = announce(directory, EXPIRES_AFTER_S + 5)
    with take(directory) as second:
        # It had looked before it was taken over, and writes now.
        first.beat()
        with pytest.raises(InvalidInput, match="took over"):
            first.check()
        second.check()


# What the workers do.


def planned(tmp_path: Path) -> tuple[Job, Any]:
    job = Job("stage", str(tmp_path / "out"), "{name}.rows", "_work/failures/{name}.jsonl")
    keys = [{"key": key, "source": key} for key in "xyz"]
    job = plan_job(job, {"a": keys}, {})
    return job, job.specs[0]


class Clock:
    """Monotonic seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulse, "monotonic", clock)
    monkeypatch.setattr(pulse, "_PULSES", {})
    return clock


@pytest.mark.parametrize("local", [True, False])
def test_a_clusters_workers_beat_when_the_launcher_is_silent(
    directory: Path, clock: Clock, local: bool
) -> None:
    lease = announce(directory, EXPIRES_AFTER_S - 5, local=local)
    then = written(lease)
    for _ in range(3):
        clock.now += BEAT_EVERY_S - 1
        lease.keep()
    # It looked once, at 38 s; before two silent periods had passed nobody is in a hurry.
    assert written(lease) == then
    for _ in range(4):
        clock.now += BEAT_EVERY_S
        lease.keep()
    assert (written(lease) > then) is not local


def test_a_clusters_workers_leave_a_beating_launcher_alone(directory: Path, clock: Clock) -> None:
    lease = announce(directory, 90, local=False)
    for _ in range(20):
        clock.now += BEAT_EVERY_S
        grow_old(lease, 1)
        then = written(lease)
        lease.keep()
        assert written(lease) == then


def test_a_worker_looks_only_now_and_then(
    directory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, check = announce(directory), Lease.check
    looks: list[Lease] = []

    def counted(lease: Lease) -> float:
        looks.append(lease)
        return check(lease)

    monkeypatch.setattr(Lease, "check", counted)
    for _ in range(1000):
        clock.now += 0.1
        lease.keep()
    assert 4 <= len(looks) <= 100 / BEAT_EVERY_S


def test_a_look_that_fails_ends_no_shard(
    directory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = announce(directory)

    def no_network(_: str) -> None:
        raise OSError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "list_files", no_network)
        clock.now += BEAT_EVERY_S
        lease.keep()
        with pytest.raises(OSError, match="no network"):
            lease.check()
    Path(lease.path).unlink()
    clock.now += BEAT_EVERY_S
    with pytest.raises(InvalidInput, match="holds it no longer"):
        lease.keep()


def test_a_worker_whose_local_launcher_has_ended_gives_up(directory: Path) -> None:
    lease = announce(directory, process=ended_process())
    with pytest.raises(InvalidInput, match=r"the launch of this worker \(process \d+ on"):
        lease.check()
    replace(lease, local=False).check()


def test_a_shard_is_not_begun_without_the_lease(directory: Path, tmp_path: Path) -> None:
    job, spec = planned(tmp_path)
    lease = announce(directory)
    made = ProcessShard(replace(job, lease=lease), Upper(tmp_path / "log"))
    Path(lease.path).unlink()
    with pytest.raises(RuntimeError, match="captionbeam-error"):
        list(made.process(spec))
    assert not (tmp_path / "log").exists()
    assert not [path for path in (tmp_path / "out").rglob("*") if "a.rows" in path.name]


def test_a_shard_is_not_finished_without_the_lease(directory: Path, tmp_path: Path) -> None:
    job, spec = planned(tmp_path)
    lease = announce(directory)
    sink = Sink(replace(job, lease=lease), spec)
    for key in (b"x", b"y", b"z"):
        sink.write(key)
    Path(lease.path).unlink()
    with pytest.raises(InvalidInput, match="holds it no longer"):
        sink.commit()
    sink.abandon()
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        *("job.json", "a.jsonl")
    ]


def test_nothing_is_published_without_the_lease(directory: Path, tmp_path: Path) -> None:
    job, _ = planned(tmp_path)
    lease = announce(directory)
    publish = Publish(replace(job, lease=lease), PublishNames(tmp_path / "published"))
    specs = [spec.path for spec in job.specs]
    Path(lease.path).unlink()
    with pytest.raises(RuntimeError, match="captionbeam-error"):
        list(publish.process([]))
    assert not (tmp_path / "published").exists()
    for path in specs:
        rows = [{"key": "x", "source": "x", "captions": [[1, "a dog"]]}]
        storage.write_bytes(path, b"".join(map(storage.json_line, rows)))
    with pytest.raises(InvalidInput, match="holds it no longer"):
        write_vocabulary(specs, str(tmp_path / "vocabulary.json"), 1, (), lease)
    assert not (tmp_path / "vocabulary.json").exists()


class Orphan(Upper):
    """Before its last item another launch makes the whole job, as after a launcher's death."""

    def process(self, items: Any, sink: Sink) -> None:
        for item in items[:-1]:
            sink.write(item["key"].upper().encode())
        self.meanwhile()
        sink.write(items[-1]["key"].upper().encode())

    meanwhile: Any


def test_what_a_killed_launch_s_worker_still_does_spoils_nothing(tmp_path: Path) -> None:
    job, spec = planned(tmp_path)
    work, output = Orphan(tmp_path / "log"), tmp_path / "out"
    unfinished: list[Path] = []
    made: dict[str, bytes] = {}
    monkeypatch = pytest.MonkeyPatch()

    def meanwhile() -> None:
        # The launcher dies only now, so that its lease is free at once.
        monkeypatch.undo()
        with hold_output(replace(job, specs=()), ()) as held:
            second = replace(job, lease=held.lease)
            run_job(second, Upper(tmp_path / "log"), PublishNames(tmp_path / "published"), ())
        unfinished.extend(output.rglob("*.tmp-*"))
        made.update(snapshot(output))

    work.meanwhile = meanwhile
    dead = announce(output / "_work" / "lease", process=reused_number())
    orphan = ProcessShard(replace(job, lease=dead), work)
    monkeypatch.setattr(Process, "has_ended", lambda _: False)
    with pytest.raises(RuntimeError, match="captionbeam-error"):
        list(orphan.process(spec))
    # The second launch left alone what the orphan was writing, and did not write into it.
    assert len(unfinished) == 2
    after = snapshot(output)
    assert after["a.rows"] == b"XYZ"
    assert after == {name: data for name, data in made.items() if ".tmp-" not in name}


def snapshot(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()}


# The commands.


@pytest.fixture
def held_output(tmp_path: Path) -> Iterator[Path]:
    with hold_output(Job("stage", str(tmp_path / "out"), "", ""), ()):
        yield tmp_path / "out"


def test_a_second_preprocess_ends_with_2_and_one_line_before_it_plans(
    held_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("pipelines.records_job.Encoder", lambda _: FakeEncoder(tmp_path / "log"))
    path, images = write_split(tmp_path, "train", 3)
    before = snapshot(held_output)
    flags = ["--encoder_weights=random:0", "--image_size=32", "--grid_size=1"]
    command = ["preprocess", f"--split=train={path}:{images}", f"--output={held_output}", *flags]
    assert captionbeam.main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"captionbeam preprocess: {held_output} is held by another launch (proc")
    assert err.count("\n") == 1
    assert snapshot(held_output) == before


def test_a_second_bulk_is_refused_before_it_plans_and_a_later_one_is_not(
    held_output: Path, tmp_path: Path
) -> None:
    World.reset()
    photos = write_photos(tmp_path / "in", 3)
    before = snapshot(held_output)
    with pytest.raises(InvalidInput, match=f"^{held_output} is held by another launch"):
        caption(photos, held_output)
    assert snapshot(held_output) == before
    assert World.batches == []
    for _ in range(2):
        assert caption(photos, tmp_path / "free").captioned == 3
        assert not list((tmp_path / "free" / "_work" / "lease").iterdir())


@pytest.mark.parametrize(
    "runner", ["FnApiRunner", "DirectRunner", "tests.test_pipelines_shards.Remote"]
)
def test_only_a_local_runner_s_lease_ends_with_its_launcher(runner: str, tmp_path: Path) -> None:
    with hold_output(Job("stage", str(tmp_path / "out"), "", ""), (f"--runner={runner}",)) as job:
        assert job.lease is not None
        assert job.lease.local is (not runner.endswith("Remote"))


def test_beginning_another_job_keeps_the_lease(tmp_path: Path) -> None:
    job, _ = planned(tmp_path)
    with hold_output(replace(job, specs=()), ()) as held:
        plan_job(held, {"b": [{"key": "k", "source": "k"}]}, {"size": 2})
        assert held.lease is not None
        held.lease.check()


def test_a_lease_s_file_says_what_it_is(directory: Path) -> None:
    with take(directory, local=False) as lease:
        content = json.loads(Path(lease.path).read_text())
        assert content == json.loads(json.dumps(asdict(lease)))
        assert leases._read(lease.path) == lease
