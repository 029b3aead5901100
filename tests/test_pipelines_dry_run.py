"""A dry run of bulk captioning: what it says is what the job then does, and nothing is written."""

import io
import itertools
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import captionbeam
from model.errors import InvalidInput
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.dry_run import dry_run
from pipelines.dry_run_report import DryRun, Left, Sample, Survey, size_in_words, time_in_words
from pipelines.fetch_settings import FetchSettings
from tests.bulk_fixtures import (
    NAME,
    World,
    answer_by_fakes,
    connect_fake,
    encode,
    photo,
    write_photos,
)
from tests.fetch_fixtures import answered, serving

SMALL = BulkConfig("", batch_size=4, shard_size=8)
# Found as the caller's right alone, whatever network this machine has.
LOOPBACK = replace(
    SMALL, fetch=FetchSettings(("127.0.0.0/8",), ignore_robots=True, host_rate=0, url_retries=0)
)


@pytest.fixture(autouse=True)
def _world() -> None:
    World.reset()


def clients() -> Clients:
    return Clients(Target("models/fake", None, NAME), connect_fake)


def look(where: Path | list[str], output: Path, config: BulkConfig = SMALL) -> DryRun:
    """A dry run by a clock that goes on by a second at each look."""
    inputs = where if isinstance(where, list) else str(where)
    ticks = itertools.count()
    settings = replace(config, output=str(output))
    return dry_run(inputs, Columns(), clients(), settings, now_s=lambda: float(next(ticks)))


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_it_counts_what_the_job_then_does_and_writes_nothing(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 40, poison=[3])
    (photos / "notes.txt").write_text("x")
    (photos / "moving.gif").write_bytes(b"")
    sizes = sum(path.stat().st_size for path in photos.iterdir() if path.suffix != ".txt")
    found = look(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert found.survey == Survey(41, {"no_image_suffix": 1}, {".png": 40, ".gif": 1}, 41, sizes)
    assert found.left == Left(6, 6, 41, 0, 0)
    assert found.model == {"name": NAME, "version": 3}
    # Of 32 that were drawn, the model was asked for each in the batches of the job, and once ahead.
    ledger = caption_all(
        str(photos), Columns(), clients(), replace(SMALL, output=str(tmp_path / "out"))
    )
    assert ledger.inputs == found.survey.images + sum(found.survey.skipped.values())


def test_the_sample_is_drawn_by_keys_and_captioned_in_the_batches_of_the_job(
    tmp_path: Path,
) -> None:
    photos = write_photos(tmp_path / "in", 100)
    first = look(photos, tmp_path / "out").sample
    assert World.batches == [1, *[4] * 8]
    assert (first.taken, first.asked, first.formats, first.failed) == (32, 32, {"PNG": 32}, {})
    # One look at the clock before and one after each of the two.
    assert (first.read_s, first.caption_s) == (1.0, 1.0)
    assert first.image_s == 1 / 32
    # Whatever lies beside them, the same images are drawn as long as they are there.
    drawn = World.batches.copy()
    World.reset()
    assert look(photos, tmp_path / "out").sample == first
    assert World.batches == drawn


def test_failures_of_the_sample_are_named_by_their_reasons(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6, poison=[2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "page.jpg").write_bytes(b"<html>")
    (photos / "named_wrongly.png").write_bytes(encode_jpeg())
    sample = look(photos, tmp_path / "out").sample
    assert sample.failed == {"empty": 1, "not_an_image": 1, "model_error": 1}
    assert sample.formats == {"PNG": 6, "JPEG": 1}
    assert (sample.taken, sample.asked) == (9, 7)


def encode_jpeg() -> bytes:
    from PIL import Image

    return encode(Image.new("RGB", (16, 16), "teal"), "JPEG")


def test_bytes_of_urls_are_estimated_from_the_sample_alone(tmp_path: Path) -> None:
    data = photo(1)
    photos = write_photos(tmp_path / "in", 2)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        member = tarfile.TarInfo("a/b.png")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    with serving() as server:
        server.answers["/b.webp"] = answered(200, data)
        server.answers["/c"] = answered(404)
        urls = [server.url("/b.webp?x=1.gif"), server.url("/b.webp"), server.url("/c")]
        server.answers["/b.webp?x=1.gif"] = answered(200, data)
        (tmp_path / "urls.txt").write_text("\n".join([*urls, "gone.jpg"]))
        inputs = [str(photos), str(tmp_path / "urls.txt"), str(tmp_path / "some.tar")]
        found = look(inputs, tmp_path / "out", LOOPBACK)
    listed = sum(path.stat().st_size for path in photos.iterdir()) + len(data)
    assert found.survey.kinds == {
        ".png": 3,
        "URL .webp": 2,
        "URL of another suffix": 1,
        ".jpg": 1,
    }
    # A tar's member has the member's size, not the tar's; what is gone has none.
    assert (found.survey.files, found.survey.known_bytes) == (3, listed)
    assert sorted(found.sample.unlisted) == [len(data)] * 2
    assert found.sample.failed == {"http_4xx": 1, "missing_file": 1}
    text = str(found)
    assert f"in 3 files, as listed; about {4 * len(data)} B in 4 others" in text


def test_an_output_that_is_there_is_left_alone_and_told(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 24, poison=[3])
    output = tmp_path / "out"
    config = replace(SMALL, output=str(output))
    World.unavailable_after = 7
    with pytest.raises(InvalidInput, match="went away"):
        caption_all(str(photos), Columns(), clients(), config)
    World.reset()
    before = files_of(output)
    left = look(photos, output).left
    assert files_of(output) == before
    assert left.shards == 3
    assert 0 < left.shards_left < 3
    assert left.captioned + left.failed + left.images_left == 24
    caption_all(str(photos), Columns(), clients(), config)
    before = files_of(output)
    found = look(photos, output)
    assert found.left == Left(3, 0, 0, 23, 1)
    assert "23 captions and 1 failures are there; nothing is to be done" in str(found)
    # What is to be tried again, or has changed, is to be made.
    again = look(photos, output, replace(SMALL, retry=frozenset(["model_error"])))
    assert again.left.shards_left == 1
    (photos / "000.png").write_bytes(photo(77))
    assert look(photos, output).left.shards_left == 1
    assert files_of(output) == before


def test_what_the_job_would_refuse_the_dry_run_refuses(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    with pytest.raises(InvalidInput, match="lies in --input"):
        look(photos, photos / "out")
    output = tmp_path / "out"
    caption_all(str(photos), Columns(), clients(), replace(SMALL, output=str(output)))
    asked = replace(SMALL, asked=replace(SMALL.asked, nbest=2))
    with pytest.raises(InvalidInput, match="holds another job: nbest is 0 there, 2 now"):
        look(photos, output, asked)
    with pytest.raises(InvalidInput, match=r"^Beam: "):
        dry_run(str(photos), Columns(), clients(), SMALL, ["--runner=NoSuchRunner"])


SURVEY = Survey(1000, {"hidden": 2}, {".jpg": 900, "URL .png": 100}, 900, 90_000_000)
SAMPLE = Sample(32, 1.6, 30, 8.0, {"JPEG": 30}, {"http_4xx": 2}, [100_000, 300_000])


def test_the_report_is_a_line_a_question() -> None:
    model: dict[str, str | int] = {"name": "captioner", "version": 7}
    left = Left(shards=2, shards_left=1, images_left=500, captioned=490, failed=10)
    assert str(DryRun(model, SURVEY, left, SAMPLE)).splitlines() == [
        "dry run: nothing was written",
        "images: 1000 in 2 shards; 2 (hidden 2) skipped",
        "kinds: .jpg 900, URL .png 100",
        "bytes: 90 MB in 900 files, as listed; about 20 MB in 100 others, estimated from 2 of the "
        "sample",
        "output: rows of 490 captions and 10 failures are there; 1 shards with 500 images are to "
        "be made, in which rows of images that are the same stay",
        "sample: 32 images drawn by their keys: 30 (JPEG 30) read, 2 (http_4xx 2) failed",
        # The slower of reading and captioning, for those that are left.
        "time: about 2 min 5 s in one process on this machine, from the sample: 20 images/s read "
        "and decoded, meanwhile 3.75 images/s captioned by captioner version 7",
    ]


def test_without_an_image_of_the_sample_there_is_no_estimate() -> None:
    sample = Sample(32, 1.6, 0, 0.0, {}, {"dns": 32}, [])
    survey = replace(SURVEY, files=0, known_bytes=0)
    text = str(DryRun({"name": "x", "version": 1}, survey, Left(2, 2, 1000, 0, 0), sample))
    assert "time: unknown: no image of the sample could be read" in text
    assert "bytes: 1000 images of unknown size, none of them read in the sample" in text
    assert "output: no rows there; all is to be done" in text


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1 MB"), (5e15, "5e+03 TB")],
)
def test_sizes_in_words(value: float, words: str) -> None:
    assert size_in_words(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (59.6, "1 min 0 s"), (7500, "2 h 5 min"), (90_000, "1 days 1 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


@pytest.mark.parametrize(
    ("flag", "code"), [("--dry_run", 0), ("--dry_run=True", 0), ("--dry_run=yes", 2)]
)
def test_the_command(
    flag: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = write_photos(tmp_path / "in", 3)
    answer_by_fakes(monkeypatch)
    output = tmp_path / "out"
    arguments = ["bulk", "--input", str(photos), "--output", str(output), "--model", "m/fake"]
    if code:
        with pytest.raises(SystemExit) as ended:
            captionbeam.main([*arguments, flag])
        assert ended.value.code == code
        assert "--dry_run: 'yes', expected True or False" in capsys.readouterr().err
    else:
        assert captionbeam.main([*arguments, flag]) == 0
        assert capsys.readouterr().out.startswith("dry run: nothing was written\nimages: 3 in 1 ")
    assert not output.exists()


def test_false_runs_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "in", 3)
    answer_by_fakes(monkeypatch)
    output = tmp_path / "out"
    arguments = ["bulk", "--input", str(photos), "--output", str(output), "--model", "m/fake"]
    assert captionbeam.main([*arguments, "--dry_run=False"]) == 0
    assert (output / "summary.json").exists()
