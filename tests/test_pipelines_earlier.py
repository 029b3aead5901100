"""An output whose inputs, model or failures changed: only what has no row is captioned."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckFailed, InvalidInput
from pipelines import counters, manifests
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.clients import Clients, Target
from pipelines.ledger import Ledger
from pipelines.manifests import Columns
from tests.bulk_fixtures import (
    NAME,
    VERSION,
    World,
    connect_fake,
    fake_caption,
    photo,
    write_photos,
)

# One shard alone, so that an undisturbed run has the same ones however many images there are.
ONE_SHARD = BulkConfig("", batch_size=4, shard_size=1000)
TWO_SHARDS = replace(ONE_SHARD, shard_size=8)


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    World.reset()
    yield
    World.reset()


def caption(where: Path, output: Path, config: BulkConfig = ONE_SHARD) -> Ledger:
    """Captions it; World.batches then tells this run's requests alone."""
    World.batches = []
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    return caption_all(str(where), Columns(), clients, replace(config, output=str(output)))


def contents(output: Path) -> dict[str, bytes]:
    """Every result file; what is only there to resume is left out."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.fixture
def _stateless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What manifests list does not tell when it changes, as URLs do not."""
    monkeypatch.setattr(manifests, "state_of", lambda _: None)


def listed(photos: Path) -> Path:
    """A manifest of what lies there."""
    path = photos.parent / "list.txt"
    path.write_text("\n".join(f"{photos.name}/{path.name}" for path in sorted(photos.iterdir())))
    return path


def rows(output: Path, kind: str = "captions") -> dict[str, dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(output.glob(f"{kind}-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    found = {row["key"]: row for row in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("config", [ONE_SHARD, TWO_SHARDS], ids=["one shard", "two"])
def test_images_that_came_are_captioned_and_no_other(config: BulkConfig, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 12)
    caption(photos, tmp_path / "out", config)
    for index, name in ((80, "00-before"), (81, "005-between"), (82, "zz-behind")):
        (photos / f"{name}.png").write_bytes(photo(index))
    (photos / "new.jpg").write_bytes(b"no image")
    ledger = caption(photos, tmp_path / "out", config)
    assert sum(World.batches) == 3
    assert (ledger.inputs, ledger.captioned, ledger.failed) == (16, 15, {"not_an_image": 1})
    assert caption(photos, tmp_path / "whole", config) == ledger
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert rows(tmp_path / "out", "failures") == rows(tmp_path / "whole", "failures")
    if config is ONE_SHARD:
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("_stateless")
def test_a_failure_stays_until_it_is_to_be_tried_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5)
    (photos / "late.png").symlink_to(tmp_path / "there")
    (photos / "broken.png").write_bytes(b"no image")
    caption(listed(photos), tmp_path / "out")
    (tmp_path / "there").write_bytes(photo(70))
    (photos / "new.png").write_bytes(photo(71))
    ledger = caption(listed(photos), tmp_path / "out")
    assert (ledger.captioned, ledger.failed) == (6, {"missing_file": 1, "not_an_image": 1})
    (photos / "broken.png").write_bytes(photo(72))
    retry = replace(ONE_SHARD, retry=frozenset({"missing_file", "dns"}))
    ledger = caption(listed(photos), tmp_path / "out", retry)
    assert sum(World.batches) == 1
    assert (ledger.captioned, ledger.failed) == (7, {"not_an_image": 1})
    assert rows(tmp_path / "out")["in/late.png"]["caption"] == fake_caption(photo(70))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ledger"]["failed"] == {"not_an_image": 1}
    # Nothing is left to try.
    caption(listed(photos), tmp_path / "out", retry)
    assert World.batches == []


@pytest.mark.usefixtures("_stateless")
def test_what_fails_again_can_be_tried_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    (photos / "late.png").symlink_to(tmp_path / "there")
    caption(listed(photos), tmp_path / "out")
    retry = replace(ONE_SHARD, retry=frozenset({"missing_file"}))
    for _ in range(2):
        assert caption(listed(photos), tmp_path / "out", retry).failed == {"missing_file": 1}
        assert World.batches == []
    (tmp_path / "there").write_bytes(photo(70))
    assert caption(listed(photos), tmp_path / "out", retry).captioned == 4


def test_an_object_that_changed_is_captioned_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6)
    caption(photos, tmp_path / "out")
    (photos / "002.png").write_bytes(photo(90))
    # The same size, and bytes that only its time tells from the old ones.
    stat = (photos / "004.png").stat()
    (photos / "004.png").write_bytes(photo(4)[:-1] + photo(4)[-1:])
    os.utime(photos / "004.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    caption(photos, tmp_path / "out")
    assert sum(World.batches) == 2
    assert rows(tmp_path / "out")["002.png"]["caption"] == fake_caption(photo(90))
    caption(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("_stateless")
@pytest.mark.parametrize("calls", [0, 1])
def test_a_retry_that_was_stopped_goes_on(calls: int, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 16)
    for index in range(8):
        (photos / f"late{index}.png").symlink_to(tmp_path / f"there{index}")
    caption(listed(photos), tmp_path / "out", TWO_SHARDS)
    for index in range(8):
        (tmp_path / f"there{index}").write_bytes(photo(70 + index))
    retry = replace(TWO_SHARDS, retry=frozenset({"missing_file"}))
    World.unavailable_after = calls
    with pytest.raises(InvalidInput, match="went away"):
        caption(listed(photos), tmp_path / "out", retry)
    assert not (tmp_path / "out" / "summary.json").exists()
    World.unavailable_after = None
    assert caption(listed(photos), tmp_path / "out", retry).captioned == 24
    assert sum(World.batches) <= 8
    caption(listed(photos), tmp_path / "whole", TWO_SHARDS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_images_that_went_have_no_row_and_nothing_is_captioned(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6)
    caption(photos, tmp_path / "out")
    (photos / "003.png").unlink()
    assert caption(photos, tmp_path / "out").inputs == 5
    assert World.batches == []
    caption(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_version_of_the_model_captions_everything_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 12, poison=[3])
    (photos / "broken.png").write_bytes(b"no image")
    caption(photos, tmp_path / "out", TWO_SHARDS)
    World.versions = (VERSION + 1,)
    ledger = caption(photos, tmp_path / "out", TWO_SHARDS)
    assert {row["model_version"] for row in rows(tmp_path / "out").values()} == {VERSION + 1}
    # What one model refused is shown to the next one.
    assert sum(World.batches) > 12
    assert (ledger.captioned, ledger.failed) == (11, {"model_error": 1, "not_an_image": 1})
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["model"] == {"name": NAME, "version": VERSION + 1}


def test_a_version_that_came_amid_the_run_leaves_rows_of_one_version(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 16)
    World.unavailable_after = 2
    with pytest.raises(InvalidInput, match="went away"):
        caption(photos, tmp_path / "out", TWO_SHARDS)
    World.reset()
    World.versions = (VERSION + 1,)
    assert caption(photos, tmp_path / "out", TWO_SHARDS).captioned == 16
    assert {row["model_version"] for row in rows(tmp_path / "out").values()} == {VERSION + 1}


def test_other_sizes_of_shards_and_batches_change_nothing(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 12)
    caption(photos, tmp_path / "out", TWO_SHARDS)
    before = contents(tmp_path / "out")
    World.batches = []
    caption(photos, tmp_path / "out", replace(TWO_SHARDS, shard_size=2, batch_size=3))
    assert World.batches == []
    assert contents(tmp_path / "out") == before


def test_rows_that_would_say_something_else_are_another_job(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    caption(photos, tmp_path / "out")
    with pytest.raises(InvalidInput, match="holds another job: nbest is 0 there, 2 now"):
        caption(photos, tmp_path / "out", replace(ONE_SHARD, asked=Asked(nbest=2)))


@pytest.mark.parametrize("file", ["captions", "failures", "specs"])
def test_rows_that_are_not_those_that_were_written_are_made_again(
    file: str, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "in", 6, poison=[1])
    caption(photos, tmp_path / "out")
    where = "_work/specs/*" if file == "specs" else f"{file}-*"
    [path] = (tmp_path / "out").glob(where)
    path.write_bytes(path.read_bytes().replace(b"00", b"99"))
    (photos / "new.png").write_bytes(photo(71))
    caption(photos, tmp_path / "out")
    assert sum(World.batches) >= 6
    caption(photos, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_shards_were_made_from_is_kept_once(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 12)
    caption(photos, tmp_path / "out", TWO_SHARDS)
    for index in range(3):
        (photos / f"new{index}.png").write_bytes(photo(70 + index))
        caption(photos, tmp_path / "out", TWO_SHARDS)
    work = tmp_path / "out" / "_work"
    assert len(list((work / "specs").iterdir())) == len(list((work / "done").iterdir())) == 2
    assert list((work / "begun").iterdir()) == []


def test_a_limit_and_a_sample_skip_the_others_by_number(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 12)
    ledger = caption(photos, tmp_path / "out", replace(ONE_SHARD, limit=5))
    assert (ledger.inputs, ledger.captioned, ledger.skipped) == (12, 5, {"not_taken": 7})
    assert list(rows(tmp_path / "out")) == [f"{index:03d}.png" for index in range(5)]
    # All of them later: the five stay.
    assert caption(photos, tmp_path / "out").skipped == {}
    assert sum(World.batches) == 7
    drawn = [replace(ONE_SHARD, sample=size) for size in (4, 6, 100)]
    keys = []
    for index, config in enumerate(drawn):
        caption(photos, tmp_path / f"sample{index}", config)
        keys.append(set(rows(tmp_path / f"sample{index}")))
    assert [len(each) for each in keys] == [4, 6, 12]
    # A larger sample goes on from a smaller one, and it is not the beginning of the list.
    assert keys[0] < keys[1]
    assert keys[1] != {f"{index:03d}.png" for index in range(6)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "--limit 0: expected 1 or more"),
        ({"sample": -1}, "--sample -1: expected 1 or more"),
        ({"retry": frozenset({"dns", "slow"})}, "--retry_failed slow: no reason of a failure"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        BulkConfig("out", **settings)


def test_what_beam_counted_is_compared_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "in", 12, poison=[3])
    told: list[counters.Counted] = []
    counted = counters.counted

    def counted_as(change: int) -> Any:
        def count(result: Any) -> Any:
            found = counted(result)
            assert found is not None
            told.append(found)
            return found[0] + change, found[1]

        return count

    monkeypatch.setattr(counters, "counted", counted_as(0))
    caption(photos, tmp_path / "out", TWO_SHARDS)
    assert told == [(11, {"model_error": 1})]
    # Shards that were found are counted, too.
    next((tmp_path / "out").glob("captions-*")).unlink()
    caption(photos, tmp_path / "out", TWO_SHARDS)
    assert told[1] == told[0]
    monkeypatch.setattr(counters, "counted", counted_as(1))
    with pytest.raises(CheckFailed, match=r"Beam counted 12 captioned .* the rows say 11"):
        caption(photos, tmp_path / "other", TWO_SHARDS)
    # A runner that does not count.
    monkeypatch.setattr(counters, "counted", lambda _: None)
    assert caption(photos, tmp_path / "third", TWO_SHARDS).captioned == 11
