"""What a bulk job asks of its input, its output and Beam's flags before it captions."""

import json
from pathlib import Path

import pytest

from model.errors import InvalidInput
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.captioning import Clients, Target
from pipelines.columns import Columns
from pipelines.ledger import Ledger
from tests.bulk_fixtures import NAME, World, connect_fake, write_photos


@pytest.fixture(autouse=True)
def _world() -> None:
    World.reset()


def caption(where: Path | str, output: Path | str, *beam_args: str) -> Ledger:
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    config = BulkConfig(str(output), batch_size=4, shard_size=8)
    return caption_all(str(where), Columns(), clients, config, beam_args)


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
