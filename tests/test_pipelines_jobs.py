import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines import storage
from pipelines.job_plan import assign, plan_job
from pipelines.jobs import Item, Job, failed_by_reason
from pipelines.sink import Sink


def items(*keys: str) -> list[Item]:
    return [{"key": key, "source": f"/{key}"} for key in keys]


def job(tmp_path: Path) -> Job:
    return Job("stage", str(tmp_path / "out"), "{name}.rows", "_work/failures/{name}.jsonl")


def finish(planned: Job, index: int = 0) -> Path:
    """Write every item of a shard; returns its output file."""
    spec = planned.specs[index]
    sink = Sink(planned, spec)
    for item in storage.read_json_lines(spec.path):
        sink.write(item["key"].encode())
    return Path(planned.path(sink.commit().output.file))


def test_assignment_depends_on_the_key_alone() -> None:
    keys = [f"{number}.jpg" for number in range(200)]
    shards = assign(items(*keys), 4)
    assert sorted(item["key"] for shard in shards for item in shard) == sorted(keys)
    assert assign(items(*reversed(keys)), 4) == shards
    assert min(map(len, shards)) > 30
    without = assign(items(*keys[1:]), 4)
    gone = items(keys[0])[0]
    assert without == [[item for item in shard if item != gone] for shard in shards]
    # Golden: the same shard on every machine and Python, or resuming would mix jobs.
    assert [len(shard) for shard in shards] == [49, 58, 42, 51]


def test_specs_hold_the_items_and_the_same_plan_is_found_again(tmp_path: Path) -> None:
    shards = {"a": items("x", "ü"), "b": []}
    planned = plan_job(job(tmp_path), shards, {"size": 1})
    assert [spec.name for spec in planned.specs] == ["a", "b"]
    assert [storage.read_json_lines(spec.path) for spec in planned.specs] == [shards["a"], []]
    written = Path(planned.specs[0].path).stat().st_mtime_ns
    assert plan_job(job(tmp_path), shards, {"size": 1}) == planned
    assert Path(planned.specs[0].path).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("shards", "settings", "difference"),
    [
        ({"a": items("x")}, {"size": 2, "depth": {"x": [1]}}, "size is 1 there, 2 now"),
        ({"a": items("x")}, {"size": 1, "depth": {"x": 2}}, 'depth is {"x": [1]} there'),
        ({"a": items("x")}, {"size": 1}, 'depth is {"x": [1]} there, null now'),
        ({"a": items("y")}, {"size": 1, "depth": {"x": [1]}}, "its inputs are others than"),
        ({"b": items("x")}, {"size": 1, "depth": {"x": [1]}}, "its inputs are others than"),
    ],
)
def test_another_job_is_refused_once_a_shard_is_finished(
    tmp_path: Path, shards: dict[str, list[Item]], settings: dict[str, Any], difference: str
) -> None:
    finish(plan_job(job(tmp_path), {"a": items("x")}, {"size": 1, "depth": {"x": (1,)}}))
    with pytest.raises(InvalidInput) as caught:
        plan_job(job(tmp_path), shards, settings)
    assert f"holds another job: {difference}" in str(caught.value)


def test_a_job_that_finished_nothing_gives_way(tmp_path: Path) -> None:
    plan_job(job(tmp_path), {"a": items("x")}, {"size": 1})
    left_over = tmp_path / "out" / "_work" / "vocabulary.json"
    left_over.write_text("of the first job")
    planned = plan_job(job(tmp_path), {"b": items("y")}, {"size": 2})
    assert storage.read_json_lines(planned.specs[0].path) == items("y")
    assert not left_over.exists()
    assert [path.name for path in Path(planned.path("_work", "specs")).iterdir()] == ["b.jsonl"]


def test_a_job_that_gives_way_leaves_no_shard_of_its_own_behind(tmp_path: Path) -> None:
    planned = plan_job(job(tmp_path), {"a": items("x"), "b": []}, {"size": 1})
    # Killed after its files were renamed and before it was marked finished.
    finish(planned)
    Path(planned.done_path("a")).unlink()
    (tmp_path / "out" / "mine.rows").write_text("not the job's")
    plan_job(job(tmp_path), {"c": items("y")}, {"size": 2})
    assert sorted(path.name for path in (tmp_path / "out").glob("*.rows")) == ["mine.rows"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_a_job_that_was_stopped_while_it_gave_way_is_whole_again(
    tmp_path: Path, call: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shards(size: int) -> dict[str, list[Item]]:
        return {f"shard-{size}": items("x", "y"[:size])}

    first = plan_job(job(tmp_path), shards(1), {"size": 1})
    finish(first)
    Path(first.done_path("shard-1")).unlink()
    vocabulary = tmp_path / "out" / "_work" / "vocabulary.json"
    vocabulary.write_text("of the first job")
    delete, calls = storage.delete, []

    def stopped(*paths: str) -> None:
        calls.append(paths)
        if len(calls) == call:
            delete(*paths[: len(paths) // 2])
            raise OSError("the power went away")
        delete(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete", stopped)
        with pytest.raises(InvalidInput, match="the power went away"):
            plan_job(job(tmp_path), shards(2), {"size": 2})
    planned = plan_job(job(tmp_path), shards(size), {"size": size})
    [spec] = planned.specs
    assert storage.read_json_lines(spec.path) == shards(size)[spec.name]
    assert size == 1 or not (tmp_path / "out" / "shard-1.rows").exists()
    assert size == 1 or not vocabulary.exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_lost_or_empty_spec_is_written_again(tmp_path: Path, damage: Any) -> None:
    shards = {"a": items("x"), "b": items("y")}
    planned = plan_job(job(tmp_path), shards, {})
    finish(planned)
    damage(Path(planned.specs[1].path))
    kept = Path(planned.specs[0].path).stat().st_mtime_ns
    assert plan_job(job(tmp_path), shards, {}) == planned
    assert storage.read_json_lines(planned.specs[1].path) == shards["b"]
    assert Path(planned.specs[0].path).stat().st_mtime_ns == kept


@pytest.mark.parametrize("name", ["rec[1]", "rec*", "rec?", "a[b/c"])
def test_an_output_that_is_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    at_pattern = replace(job(tmp_path), output=str(tmp_path / name))
    with pytest.raises(InvalidInput, match=r"^--output .*expected a name that is no pattern"):
        plan_job(at_pattern, {"a": items("x")}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", None])
def test_an_output_that_cannot_be_used_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is None:
        (tmp_path / "out").write_text("a file")
    else:
        (tmp_path / "out" / "_work").mkdir(parents=True)
        (tmp_path / "out" / "_work" / "job.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"out: cannot be used .*, or take another --output$"):
        plan_job(job(tmp_path), {"a": items("x")}, {})


def test_a_result_stands_for_whole_files_of_the_same_items_only(tmp_path: Path) -> None:
    planned = plan_job(job(tmp_path), {"a": items("x", "y")}, {})
    spec = planned.specs[0]
    assert planned.result(spec) is None
    output = finish(planned)
    result = planned.result(spec)
    assert result is not None
    assert (result.inputs, result.written, result.output.bytes) == (2, 2, 2)
    output.write_bytes(b"x")
    assert planned.result(spec) is None
    output.unlink()
    assert planned.result(spec) is None
    output.write_bytes(b"xy")
    assert planned.result(spec) == result
    done = Path(planned.done_path("a"))
    done.write_text(json.dumps({**json.loads(done.read_text()), "digest": "other"}))
    assert planned.result(spec) is None


@pytest.mark.parametrize("content", ["", '{"name": "a"', "[]", "{}", '{"output": 1}', "\x00"])
def test_a_result_that_is_cut_short_counts_as_none(tmp_path: Path, content: str) -> None:
    planned = plan_job(job(tmp_path), {"a": items("x")}, {})
    finish(planned)
    Path(planned.done_path("a")).write_text(content)
    assert planned.result(planned.specs[0]) is None


def test_a_sink_accounts_for_every_item_or_publishes_nothing(tmp_path: Path) -> None:
    planned = plan_job(job(tmp_path), {"a": items("x", "y", "z")}, {})
    sink = Sink(planned, planned.specs[0])
    sink.write(b"x", words=2)
    sink.fail_part(items("x")[0], ItemFailure(Reason.INVALID_CAPTION, "empty"))
    sink.fail(items("y")[0], ItemFailure(Reason.EMPTY, "0 bytes"), words=3)
    with pytest.raises(RuntimeError, match="shard a: 2 items accounted for, expected 3"):
        sink.commit()
    assert not (tmp_path / "out" / "a.rows").exists()
    sink.write(b"z")
    result = sink.commit()
    assert (result.written, result.failed, result.parts_failed, result.counts) == (
        2,
        {"empty": 1},
        {"invalid_caption": 1},
        {"words": 5},
    )
    assert (tmp_path / "out" / "a.rows").read_bytes() == b"xz"
    rows = storage.read_json_lines(planned.path(result.failures.file))
    assert rows[1] == {
        "key": "y",
        "source": "/y",
        "stage": "stage",
        "reason": "empty",
        "message": "0 bytes",
    }
    assert planned.result(planned.specs[0]) == result
    assert failed_by_reason([result, result]) == {"empty": 2}
    assert not list((tmp_path / "out").rglob("*.tmp-*"))
