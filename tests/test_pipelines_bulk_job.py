"""What a bulk job asks of its input, its output and Beam's flags before it captions."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.ledger import Ledger
from tests.bulk_fixtures import NAME, World, connect_fake, write_photos


@pytest.fixture(autouse=True)
def _world() -> None:
    World.reset()


def caption(where: Path | str, output: Path | str, *beam_args: str) -> Ledger:
    return caption_inputs([str(where)], output, *beam_args)


def caption_inputs(inputs: list[str], output: Path | str, *beam_args: str) -> Ledger:
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    config = BulkConfig(str(output), batch_size=4, shard_size=8)
    return caption_all(inputs, Columns(), clients, config, beam_args)


def read_rows(output: Path, kind: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(output.glob(f"{kind}-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize(
    ("where", "output"),
    [
        ("ph/*", "ph/out"),
        ("ph/*", "ph"),
        ("*/*.png", "out"),
        ("p*/*", "ph/out"),
        ("ph/**/*.png", "ph/a/b/out"),
        ("*/*", "ph"),
        ("other/../ph/*", "ph/out"),
        ("link/*", "ph/out"),
        ("ph/*", "link/out"),
        ("gs://bucket/ph", "gs://bucket/ph/out"),
        ("gs://bucket/ph/", "gs://bucket/ph"),
        ("gs://bucket/ph/*", "gs://bucket/ph/out"),
        ("gs://bucket/**.jpg", "gs://bucket/any/where"),
    ],
)
def test_an_output_that_the_input_reaches_is_refused(
    where: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "ph", 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ph")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        caption(where, output)
    assert str(caught.value) == (f"--output {output}: lies in --input {where}; take one outside it")
    assert World.connects == 0


@pytest.mark.parametrize(
    ("where", "output"),
    [
        ("ph/*", "out"),
        ("ph/*", "phone"),
        ("ph/*.png", "ph/out"),
        # Neither results nor their directory match.
        ("ph/*", "ph/a/out"),
        ("ph/list.txt", "ph/out"),
    ],
)
def test_an_output_beside_the_input_goes_on_where_it_stopped(
    where: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "ph", 12)
    names = sorted(path.name for path in photos.iterdir())
    if where.endswith(".txt"):
        (photos / "list.txt").write_text("\n".join(names))
    monkeypatch.chdir(tmp_path)
    World.unavailable_after = 2
    with pytest.raises(InvalidInput, match="went away"):
        caption(where, output)
    World.reset()
    assert caption(where, output).captioned == 12
    assert 0 < sum(World.batches) < 12


def test_a_stray_file_does_not_keep_a_job_from_going_on(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "ph", 12)
    (photos / "notes.txt").write_text("first")
    World.unavailable_after = 2
    with pytest.raises(InvalidInput, match="went away"):
        caption(photos, tmp_path / "out")
    World.reset()
    (photos / "more.txt").write_text("second")
    ledger = caption(photos, tmp_path / "out")
    assert 0 < sum(World.batches) < 12
    assert (ledger.captioned, ledger.skipped) == (12, {"no_image_suffix": 2})
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ledger"]["inputs"] == 14


def test_an_output_in_any_of_the_inputs_is_refused(tmp_path: Path) -> None:
    one, two = write_photos(tmp_path / "one", 1), write_photos(tmp_path / "two", 1)
    with pytest.raises(InvalidInput, match=f"lies in --input {two};"):
        caption_inputs([str(one), str(two)], two / "out")


def test_inputs_of_every_kind_come_to_one_ledger(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (tmp_path / "list.jsonl").write_text(
        '{"url": "photos/000.png", "n": 5, "caption": "mine"}\n{"url": "gone.png", "n": [6]}\n'
    )
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(photos / "001.png", "x/1.png")
        tar.add(tmp_path / "list.jsonl", "x/1.json")
    data = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"x/1.json")])
    inputs = [f"{tmp_path}/{name}" for name in ("photos", "list.jsonl", "s.tar", "cut.tar")]
    ledger = caption_inputs(inputs, tmp_path / "out")
    assert (ledger.inputs, ledger.captioned, ledger.skipped) == (8, 5, {"no_image_suffix": 1})
    assert ledger.failed == {"missing_file": 1, "truncated": 1}
    rows = {row["key"]: row for row in read_rows(tmp_path / "out", "captions")}
    assert sorted(rows) == [
        f"{tmp_path}/cut.tar/x/1.png",
        f"{tmp_path}/s.tar/x/1.png",
        "list.jsonl/photos/000.png",
        "photos/000.png",
        "photos/001.png",
    ]
    carried = rows.pop("list.jsonl/photos/000.png")
    assert carried["columns"] == {"n": 5, "caption": "mine"}
    assert carried["caption"] == rows["photos/000.png"]["caption"]
    assert rows[f"{tmp_path}/s.tar/x/1.png"]["sha256"] == rows["photos/001.png"]["sha256"]
    failures = {row["key"]: row for row in read_rows(tmp_path / "out", "failures")}
    assert failures["list.jsonl/gone.png"]["columns"] == {"n": [6]}
    assert "columns" not in failures[f"{tmp_path}/cut.tar"]
    # What tells a changed file, and where in a tar an image is, are no output.
    names = set(carried) - {"columns"}
    assert all(set(row) == names for row in rows.values())
    assert not names & {"state", "tar"}


def test_an_output_with_a_pattern_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "ph", 1)
    with pytest.raises(InvalidInput, match=r"--output .*out\[1\]: has \["):
        caption(photos, tmp_path / "out[1]")
    assert not (tmp_path / "out[1]").exists()


@pytest.mark.parametrize("flag", ["--runner=NoSuchRunner", "--num_workers=abc"])
def test_beams_flags_are_looked_at_before_the_input(flag: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^Beam: "):
        caption(tmp_path / "nowhere", tmp_path / "out", flag)
    assert not (tmp_path / "out").exists()
