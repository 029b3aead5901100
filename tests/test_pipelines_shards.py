import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.errors import CheckFailed, InvalidInput, ItemFailure, Reason
from pipelines.jobs import Item, Job, ShardResult, plan_job
from pipelines.shards import ProcessShard, run_job
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


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    job = plan(tmp_path, a="x")
    out = tmp_path / "out"
    left = [out / "a.rows.tmp-host-1", out / "manifest.json.tmp-host-1"]
    left += [out / "_work" / "done" / "a.json.tmp-host-1", out / "_work" / "job.json.tmp-host-1"]
    (out / "_work" / "done").mkdir()
    for path in left:
        path.write_text("half")
    run_job(job, Upper(tmp_path / "log"), Publish(tmp_path / "published"), ())
    assert not [path for path in left if path.exists()]


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
