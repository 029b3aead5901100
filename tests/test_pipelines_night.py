"""A night's mishaps: whatever happens, the same command again ends in the same bytes."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines import word_counts
from tests.bulk_fixtures import World, write_photos
from tests.fault_fixtures import Events, fail, killed_runs, make_noted, noted
from tests.preprocess_fixtures import FakeEncoder, calls, jpeg, published, write_split
from tests.test_pipelines_bulk_job import caption
from tests.test_pipelines_preprocess import make

ROOT = Path(__file__).parents[1]
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, and one image that fails; every test has an output of its own."""
    root = tmp_path_factory.mktemp("night")
    write_split(root, "train", 3)
    write_split(root, "val", 2, first_id=101)
    (root / "train" / f"{2:012d}.jpg").write_bytes(b"no image")
    return root


@dataclass(frozen=True)
class Undisturbed:
    """What a run publishes that nothing happens to, and its steps."""

    files: Mapping[str, bytes]
    steps: Sequence[str]


@pytest.fixture(scope="module")
def whole(world: Path) -> Undisturbed:
    events = Events()
    make_noted(world, "whole", events)
    return Undisturbed(published(world / "whole"), events.labels)


def assert_nothing_is_half(output: Path, expected: Mapping[str, bytes]) -> None:
    """A file under its final name is whole, and the manifest is the last of them."""
    there = published(output) if output.exists() else {}
    finals = {name: data for name, data in there.items() if ".tmp-" not in name}
    assert finals.items() <= expected.items()
    assert "manifest.json" not in finals or finals == expected
    for path in output.rglob("_work/**/*.json"):
        json.loads(path.read_text())


def assert_finished(output: Path, expected: Mapping[str, bytes]) -> None:
    assert published(output) == expected
    assert not list(output.rglob("*.tmp-*"))
    assert not list((output / "_work" / "lease").iterdir())


# A disk that fails.

FAULTS = {
    "write lease": errno.ENOSPC,
    "rename lease": errno.EIO,
    "write specs": errno.ENOSPC,
    "close counted vocabulary": errno.ENOSPC,
    "write shard": errno.ENOSPC,
    "write shard failures": errno.ENOSPC,
    "rename shard failures": errno.EIO,
    "rename done": errno.EIO,
    "write failures": errno.ENOSPC,
    "rename vocabulary": errno.EIO,
    "write manifest": errno.ENOSPC,
    "rename manifest": errno.EIO,
}


def break_and_repeat(
    run: Callable[[str, Events], None], read: Callable[[str], Any], at: int, number: int
) -> str:
    """Run once with a fault at a step, look, run again; returns what the first run said."""
    output = f"broken-{at}"
    events = Events(at, partial(fail, number))
    with pytest.raises(InvalidInput) as caught:
        run(output, events)
    assert len(events.labels) >= at
    read(output)
    run(output, Events())
    return str(caught.value)


@pytest.mark.parametrize("label", FAULTS)
def test_a_failing_disk_is_one_line_and_the_repeated_command_ends_in_the_same_bytes(
    world: Path, whole: Undisturbed, label: str
) -> None:
    check_fault(world, whole.files, whole.steps.index(label) + 1, FAULTS[label])


def check_fault(world: Path, expected: Mapping[str, bytes], at: int, number: int) -> None:
    output = world / f"broken-{at}"
    shutil.rmtree(output, ignore_errors=True)

    def look(_: str) -> None:
        assert_nothing_is_half(output, expected)
        # On a full disk the next attempt needs the space.
        assert not list(output.rglob("*.tmp-*"))

    said = break_and_repeat(partial(make_noted, world), look, at, number)
    assert said.startswith(f"{output}")
    assert os.strerror(number) in said
    assert "free space" in said
    assert "repeat the command" in said
    assert "\n" not in said
    assert_finished(output, expected)


@pytest.mark.slow
def test_a_disk_that_fails_at_any_step_spoils_nothing(world: Path, whole: Undisturbed) -> None:
    assert len(whole.steps) > 50
    for at, label in enumerate(whole.steps, 1):
        # Opening, writing and closing the second of a kind is as the first.
        first = label not in whole.steps[: at - 1]
        if label.startswith("rename") or (first and not label.startswith("encode")):
            check_fault(world, whole.files, at, errno.ENOSPC)


@pytest.mark.slow
def test_a_disk_that_fails_at_any_step_of_bulk_spoils_nothing(tmp_path: Path) -> None:
    World.reset()
    photos = write_photos(tmp_path / "in", 10, poison=[3])

    def run(output: str, events: Events) -> None:
        with noted(events):
            caption(photos, tmp_path / output)

    events = Events()
    run("whole", events)
    expected = published(tmp_path / "whole")
    for at, label in enumerate(events.labels, 1):
        if label in events.labels[: at - 1] and not label.startswith("rename"):
            continue
        output = tmp_path / f"broken-{at}"

        def look(_: str, output: Path = output) -> None:
            there = published(output) if output.exists() else {}
            assert there.items() <= expected.items()
            assert "summary.json" not in there

        said = break_and_repeat(run, look, at, errno.EIO)
        assert said.startswith(f"{output}: cannot be ")
        assert_finished(output, expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [0, 3, 6, 9])
def test_a_disk_that_is_really_full_is_one_line_until_there_is_space(
    world: Path, whole: Undisturbed, small_disk: Path, free: int
) -> None:
    name = f"disk-{free}"
    output = world / name
    output.symlink_to(small_disk)
    block = os.statvfs(small_disk).f_frsize
    with (small_disk / "filler").open("wb") as filler:
        filler.write(b"x" * (os.statvfs(small_disk).f_bavail - free) * block)
    with pytest.raises(InvalidInput, match=r"No space left on device.* free space.* repeat the"):
        make(world, name, shard_size=3)
    (small_disk / "filler").unlink()
    assert_nothing_is_half(output, whole.files)
    make(world, name, shard_size=3)
    assert_finished(output, whole.files)


# A process that is killed.


@pytest.mark.slow
def test_a_launcher_killed_before_any_rename_is_finished_by_the_same_command(
    world: Path, whole: Undisturbed
) -> None:
    labels = whole.steps
    steps = [at for at, label in enumerate(labels, 1) if label.startswith("rename")]
    kinds = {labels[at - 1] for at in steps}
    assert {"rename shard", "rename shard failures", "rename done", "rename manifest"} <= kinds
    runs = [(f"at-{at}", step, 0.0) for at in steps for step in (at, 0)]
    codes = [code for code, _ in killed_runs("preprocess", world, runs)]
    assert codes == [-signal.SIGKILL, 0] * len(steps)
    for at in steps:
        assert_finished(world / f"at-{at}", whole.files)


# Steps of writing by what they write: before the shards, the shards, after them.
PHASES = (
    ("lease", "specs", "job", "orphans", "counted vocabulary"),
    ("images", "shard", "shard failures", "done"),
    ("failures", "vocabulary", "manifest"),
)


@pytest.mark.slow
def test_a_launcher_killed_at_random_moments_is_finished_by_the_same_command(
    world: Path, whole: Undisturbed
) -> None:
    labels = whole.steps
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    phases = [
        [at for at, label in enumerate(labels, 1) if label.partition(" ")[2] in kinds]
        for kinds in PHASES
    ]
    assert sum(map(len, phases)) == len(labels)
    [(code, seconds)] = killed_runs("preprocess", world, [("timed", 0, 0.0)])
    assert code == 0
    runs = [(f"phase-{number}", chance.choice(steps), 0.0) for number, steps in enumerate(phases)]
    runs += [(f"delay-{number}", 0, chance.uniform(0.01, seconds)) for number in range(2)]
    outputs = [output for output, _, _ in runs]
    # The second attempt is killed as well, wherever it then is.
    runs += [(output, chance.randrange(1, 30), 0.0) for output in outputs]
    print(runs)
    codes = [code for code, _ in killed_runs("preprocess", world, runs)]
    assert codes[:3] == [-signal.SIGKILL] * 3
    for output in outputs:
        assert_nothing_is_half(world / output, whole.files)
    assert killed_runs("preprocess", world, [(output, 0, 0.0) for output in outputs])[-1][0] == 0
    for output in outputs:
        assert_finished(world / output, whole.files)


@pytest.mark.slow
def test_a_killed_worker_process_costs_its_shard_and_not_the_job(
    world: Path,
    whole: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make(world, "worker", PROCESSES, shard_size=3, stop_at=2, kill=True)
    assert (
        capfd.readouterr().err.count("a worker process ended amid its work, which is begun again")
        == 1
    )
    assert_finished(world / "worker", whole.files)


class SlowEncoder(FakeEncoder):
    """Takes its time, so that a worker outlives its launcher."""

    def __call__(self, images: Any, extents: Any = None) -> Any:
        grids = super().__call__(images, extents)
        time.sleep(5)
        return grids


def make_slowly(world: Path) -> None:
    """The run whose launcher is killed; its workers are two processes."""
    from pipelines.records_job import preprocess
    from tests.preprocess_fixtures import settings

    encoder = partial(SlowEncoder, world / "slow.log")
    preprocess(settings(world, "slow", shard_size=3), PROCESSES, encoder)


@pytest.mark.slow
def test_a_killed_launcher_s_worker_processes_do_not_spoil_the_next_run(
    world: Path, whole: Undisturbed
) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.test_pipelines_night import make_slowly; "
        "make_slowly(Path(sys.argv[1]))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, str(world)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while calls(world / "slow.log") == 0:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert len(list((world / "slow" / "_work" / "lease").iterdir())) == 1
    # Its workers still run; the lease is free all the same.
    make(world, "slow", shard_size=3)
    workers = {path.name.rsplit("-", 3)[1] for path in (world / "slow").rglob("*.tmp-*")}
    for pid in workers:
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.1)
    made = published(world / "slow")
    assert {name: data for name, data in made.items() if ".tmp-" not in name} == whole.files
    # A worker that Beam ended cannot clean up; whoever comes next does.
    Path(world / "slow" / "manifest.json").unlink()
    make(world, "slow", shard_size=3)
    assert_finished(world / "slow", whole.files)


# A corrupt image in any place.


@pytest.mark.parametrize("place", range(5))
def test_a_corrupt_image_in_any_place_of_a_batch_fails_alone(tmp_path: Path, place: int) -> None:
    write_split(tmp_path, "train", 5)
    whole = records_by_id(make(tmp_path, "whole"))
    assert calls(tmp_path / "whole.log") == 1
    (tmp_path / "train" / f"{place + 1:012d}.jpg").write_bytes(jpeg(place + 1)[:-200])
    output = make(tmp_path, "out")
    assert calls(tmp_path / "out.log") == 1
    found = records_by_id(output)
    assert found == {key: data for key, data in whole.items() if key != place + 1}
    [row] = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert (row["key"], row["reason"]) == (f"{place + 1:012d}.jpg", "truncated")


def records_by_id(output: Path) -> dict[int, bytes]:
    """Every record as it lies in the file, its frame left out."""
    import tensorflow as tf

    from model import records

    manifest = records.Manifest.load(output)
    found = {}
    for shard in manifest.shards("train"):
        for payload in tf.data.TFRecordDataset(str(output / shard.file)):
            parsed = records.parse(payload[tf.newaxis], manifest.grid_shape)
            found[int(parsed["image_id"][0])] = payload.numpy()
    return found


def test_a_launch_that_lost_its_lease_writes_no_vocabulary(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have slept while it counted, and another job may have begun meanwhile."""
    counting = word_counts.word_counts

    def counted(spec: str) -> Iterator[tuple[str, int]]:
        yield from counting(spec)
        for lease in (world / "out" / "_work" / "lease").glob("*.json"):
            lease.unlink()

    monkeypatch.setattr(word_counts, "word_counts", counted)
    with pytest.raises(InvalidInput, match="this launch holds it no longer"):
        make(world)
    assert not (world / "out" / "_work" / "vocabulary.json").exists()


def test_published_records_are_never_given_way_to_another_job(world: Path) -> None:
    output = make(world)
    before = published(output)
    shutil.rmtree(output / "_work" / "done")
    with pytest.raises(InvalidInput, match="holds another job: max_words is 20 there, 5 now"):
        make(world, max_words=5)
    assert published(output) == before
    assert published(make(world)) == before
