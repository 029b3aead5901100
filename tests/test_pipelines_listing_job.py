"""Large inputs are listed on the workers, and come out as if one process had listed them."""

import os
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest

from model.errors import CheckFailed, InvalidInput
from pipelines import storage
from pipelines.bulk_job import BulkConfig, new_job
from pipelines.listing_job import (
    LISTING_DIR,
    ListBranches,
    ListingJob,
    WriteIndex,
    _Files,
    listing_job,
)
from pipelines.runner import WorkerLost, spread_thinly
from pipelines.shards import hold_output
from pipelines.sources import Sources
from pipelines.tree_walk import Branch, Listed, Walk, walk
from tests.cloud_fixtures import s3_bucket
from tests.runner_fixtures import PATH, local_flags


@pytest.fixture(autouse=True)
def little_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three listing calls here, and two in each round of a worker, so that all rounds have some."""
    monkeypatch.setattr("pipelines.tree_walk.HERE", 3)
    monkeypatch.setattr("pipelines.listing_job._ROUND_WEIGHT", 2)
    monkeypatch.setattr("pipelines.listing_job._FIRST_GROUPS", 4)
    monkeypatch.setattr("pipelines.listing_job._MORE_GROUPS", 2)
    monkeypatch.setattr("pipelines.local_listing._AT_ONCE", 2)


def elsewhere(output: Path, beam_args: Sequence[str] = ()) -> ListingJob:
    return ListingJob(new_job(BulkConfig(str(output))), beam_args)


def listed(inputs: Sequence[str], lists: ListingJob | None = None) -> tuple[list[Any], Any]:
    sources = Sources(inputs, None, lists)
    return list(sources), sources.skipped


def make_tree(root: Path, seed: int) -> Path:
    """Directories below each other, of any number of files, with links that lead anywhere."""
    drawn = random.Random(seed)
    directories = [root / "tree"]
    for number in range(40):
        directories.append(drawn.choice(directories[-8:]) / f"d{number}")
    for number, directory in enumerate(directories):
        directory.mkdir(parents=True)
        for name in range(drawn.choice((0, 0, 1, 2, 3, 9))):
            (directory / f"{name}.jpg").write_bytes(b"x" * number)
        if drawn.random() < 0.3:
            (directory / drawn.choice((".hidden.jpg", "a.txt"))).write_bytes(b"")
    outside = root / "outside"
    for number in range(5):
        (outside / f"o{number}").mkdir(parents=True)
        (outside / f"o{number}" / "1.jpg").write_bytes(b"o")
    for number in range(8):
        target = drawn.choice([*directories, outside, outside / "o1"])
        (drawn.choice(directories) / f"link{number}").symlink_to(target)
    (directories[-1] / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(directories[-1] / "fifo.jpg")
    (directories[-1] / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (directories[-2] / os.fsdecode(b"\xfe")).mkdir()
    (directories[-2] / os.fsdecode(b"\xfe") / "1.jpg").write_bytes(b"x")
    return directories[0]


@pytest.mark.parametrize("seed", range(4))
def test_workers_find_what_one_process_finds_in_the_same_order(tmp_path: Path, seed: int) -> None:
    tree = make_tree(tmp_path, seed)
    lists = elsewhere(tmp_path / "out")
    all_inputs = [[str(tree)], [f"{tree}/**/*.jpg"], [f"{tree}/d0", str(tmp_path / "outside")]]
    if seed == 0:
        # Of two that need the workers, one is done before the other begins.
        all_inputs.append([f"{tree}/**/d1*/**/*.jpg"])
    for inputs in all_inputs:
        there, skipped = listed(inputs)
        assert (there, skipped) == listed(inputs, lists)
    assert len(listed([str(tree)])[0]) > 50
    # Nothing is left of it, and the lease is given back.
    assert not storage.match(str(tmp_path / "out" / LISTING_DIR / "*"))
    with hold_output(lists.job, ()):
        pass


def test_tars_are_indexed_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tree_walk.HERE", 100)
    for number in range(9):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name in ("a.jpg", "b.txt", "a.jpg"):
                member = tarfile.TarInfo(name)
                member.size = number
                tar.addfile(member, BytesIO(bytes(number)))
    cut = (tmp_path / "7.tar").read_bytes()[:600]
    (tmp_path / "8.tar").write_bytes(cut)
    calls: list[int] = []
    lists = elsewhere(tmp_path / "out")

    def noting(branches: Sequence[Branch], nodes: Any) -> Iterator[tuple[int, Listed]]:
        calls.append(len(branches))
        return lists(branches, nodes)

    sources = Sources([f"{tmp_path}/*.tar"], None, noting)
    assert (list(sources), sources.skipped) == listed([f"{tmp_path}/*.tar"])
    # Of nine tars the first weighs what this process lists.
    assert calls == [8]


def test_a_bucket_is_listed_by_workers(tmp_path: Path) -> None:
    with s3_bucket() as bucket:
        storage.use_flags(bucket.flags)
        for name in [f"p/{a}/{b}/{c}.jpg" for a in range(4) for b in range(3) for c in range(2)]:
            bucket.put(name, name.encode())
        bucket.put("p/3/notes.txt", b"")
        lists = elsewhere(tmp_path / "out", bucket.flags)
        for where in (f"{bucket.url}/p", f"{bucket.url}/p/*/2/**.jpg"):
            there, skipped = listed([where])
            assert len(there) in (24, 8)
            assert listed([where], lists) == (there, skipped)
        # As the index lies in a bucket, too.
        lists = ListingJob(new_job(BulkConfig(f"{bucket.url}/out")), bucket.flags)
        assert listed([f"{bucket.url}/p"], lists) == listed([f"{bucket.url}/p"])


@dataclass(frozen=True)
class Noted:
    """A tree of numbers, three below each down to 400; each process notes what it lists."""

    notes: str
    weight: ClassVar[int] = 1

    def opened(self) -> Callable[[Any], Listed]:
        return self._list

    def _list(self, node: Any) -> Listed:
        # A line is appended as a whole.
        with Path(self.notes).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {node}\n")
        below = [child for child in range(3 * node + 1, 3 * node + 4) if child < 400]
        return Listed([{"key": str(node)}], {}, below)


class Refusing(Noted):
    """A hundred numbers next to each other, of which one cannot be listed."""

    def _list(self, node: Any) -> Listed:
        super()._list(node)
        if node == 50:
            raise InvalidInput("50: cannot be listed (gone)")
        return Listed([{"key": node}], {}, [])


def noted(path: Path) -> list[tuple[int, int]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(int(pid), int(node)) for pid, node in map(str.split, lines)]


@pytest.mark.slow
def test_the_launcher_lists_the_beginning_and_the_processes_share_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)
    expected = list(walk([0], Noted(str(tmp_path / "alone"))))
    assert len(expected) == 400
    nodes = Noted(str(tmp_path / "notes"))
    lists = elsewhere(tmp_path / "out", local_flags("multi_processing", 2))
    found = list(walk([0], nodes, lists))
    assert [(each.items, each.skipped) for each in found] == [
        (each.items, each.skipped) for each in expected
    ]
    by = Counter(pid for pid, _ in noted(tmp_path / "notes"))
    # What it had asked for ahead when its part was done.
    assert by.pop(os.getpid()) <= 3 + 16
    assert len(by) == 2
    assert min(by.values()) > 40


def test_a_directory_that_cannot_be_listed_is_named_after_what_comes_before(tmp_path: Path) -> None:
    before: list[int] = []
    found = walk(range(100), Refusing(str(tmp_path / "notes")), elsewhere(tmp_path / "out"))
    with pytest.raises(InvalidInput, match=r"^50: cannot be listed \(gone\)$"):
        before.extend(item["key"] for each in found for item in each.items)
    assert before == list(range(50))
    assert not storage.match(str(tmp_path / "out" / LISTING_DIR / "*"))


def test_what_an_engine_gave_up_is_not_counted(tmp_path: Path) -> None:
    """Two attempts at the same branches: the one whose answer the engine takes counts alone."""
    nodes = Noted(str(tmp_path / "notes"))
    expected = list(walk([0], nodes))
    attempt = ListBranches.process

    def twice(self: ListBranches, stretch: Any) -> Iterator[Any]:
        list(attempt(self, stretch))
        yield from attempt(self, stretch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ListBranches, "process", twice)
        found = list(walk([0], nodes, elsewhere(tmp_path / "out")))
    assert [each.items for each in found] == [each.items for each in expected]


@pytest.mark.parametrize("times", [0, 2])
def test_a_runner_that_loses_or_repeats_elements_is_found_out(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, process = Noted(str(tmp_path / "notes")), ListBranches.process

    def careless(self: ListBranches, stretch: Any) -> Iterator[Any]:
        for made in process(self, stretch):
            # One that was left when another one was listed, in a middle round.
            yield from [made] * (times if made.place == (2, 1) and made.left is None else 1)

    monkeypatch.setattr(ListBranches, "process", careless)
    with pytest.raises(CheckFailed, match=r"out: the runner brought \d+ lists of inputs, expected"):
        list(walk([0], nodes, elsewhere(tmp_path / "out")))


def test_a_worker_that_is_lost_costs_another_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes, run, runs = Noted(str(tmp_path / "notes")), ListingJob._run, []

    def losing(self: ListingJob, *args: Any) -> None:
        run(self, *args)
        runs.append(args)
        if len(runs) < 3:
            raise WorkerLost("a worker process ended")

    monkeypatch.setattr(ListingJob, "_run", losing)
    assert len(list(walk([0], nodes, elsewhere(tmp_path / "out")))) == 400
    assert capsys.readouterr().err.count("which is begun again") == 2


def test_a_launch_that_was_taken_over_writes_into_nobodys_listing(tmp_path: Path) -> None:
    job = new_job(BulkConfig(str(tmp_path / "out")))
    nodes = Noted(str(tmp_path / "notes"))
    with hold_output(job, ()) as first:
        pass
    old = _Files(first)
    with hold_output(job, ()) as held:
        files = _Files(held)
        groups = files.write_groups((), [Branch(0, 0)], 1)
        with pytest.raises(RuntimeError):
            list(ListBranches(old, nodes, None).process(groups[0]))
        with pytest.raises(RuntimeError):
            list(WriteIndex(old, 1).process([]))
        assert [made.left for made in ListBranches(files, nodes, None).process(groups[0])] == [0]
        old.delete()
        assert storage.exists(groups[0].path)
        files.delete()
        with pytest.raises(RuntimeError) as caught:
            list(ListBranches(files, nodes, None).process(groups[0]))
        assert "gone while the inputs are listed" in str(caught.value.__cause__)


def test_dask_spreads_few_groups_over_all_workers() -> None:
    dask = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
    assert spread_thinly([dask]) == (dask, "--dask_partition_size=1")
    assert spread_thinly([dask, "--dask_partition_size=9"]) == (dask, "--dask_partition_size=9")
    assert spread_thinly(["--direct_num_workers=2"]) == ("--direct_num_workers=2",)


def test_another_launch_is_refused_and_a_killed_ones_files_are_removed(tmp_path: Path) -> None:
    nodes, lists = Noted(str(tmp_path / "notes")), elsewhere(tmp_path / "out")
    with hold_output(lists.job, ()), pytest.raises(InvalidInput, match="another launch"):
        list(walk([0], nodes, lists))
    left = tmp_path / "out" / LISTING_DIR / "listed-0-abc.json"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("{")
    assert len(list(walk([0], nodes, lists))) == 400
    assert not left.exists()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Iterator[Any]:
        raise OSError(28, "No space left on device")

    lists = elsewhere(tmp_path / "out")
    monkeypatch.setattr(ListBranches, "_write", refuse)
    with pytest.raises(InvalidInput, match=r"out: cannot be written or read \(.*No space left"):
        list(walk([0], Noted(str(tmp_path / "notes")), lists))


def test_threads_of_this_process_need_no_job(tmp_path: Path) -> None:
    job = new_job(BulkConfig(str(tmp_path)))
    assert listing_job(job, ()) is None
    assert listing_job(job, local_flags("multi_threading", 4)) is None
    assert listing_job(job, local_flags("multi_processing", 2)) is not None
    assert (
        listing_job(job, ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner",)) is not None
    )


def test_a_walk_can_be_cut_anywhere(tmp_path: Path) -> None:
    """What is listed and what is left, listed later, are the whole in order."""
    nodes = Noted(str(tmp_path / "notes"))
    whole = [(depth, each.items) for depth, each in Walk([Branch(0, 0)], nodes)]
    for cut in (1, 2, 7, 399, 400):
        first = Walk([Branch(0, 0)], nodes)
        found = []
        for depth, each in first:
            found.append((depth, each.items))
            if len(found) == cut:
                break
        found += [(depth, each.items) for depth, each in Walk(first.left, nodes)]
        assert found == whole
