"""captionbeam records: what is inside, in words and in a picture."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captionbeam
from model.record_figures import Picture
from model.records import Manifest
from pipelines import records_view
from pipelines.records_job import preprocess
from pipelines.source_flags import Source
from tests.preprocess_fixtures import FakeEncoder, settings, write_split
from tests.records_fixtures import (
    FIRST,
    VAL,
    Answer,
    copy_records,
    forge,
    make_records,
    read_shard,
    run_command,
    shard,
)

Show = Callable[..., Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("world"))


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return copy_records(made, tmp_path / "out")


@pytest.fixture
def show(
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Show:
    """Runs the command in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags: run_command(capsys, "records", str(output), *flags)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """What would be drawn."""
    kept: list[Picture] = []
    monkeypatch.setattr(records_view, "draw_records", lambda pictures, _: kept.extend(pictures))
    return kept


def size(output: Path, split: str) -> int:
    return sum(path.stat().st_size for path in output.glob(f"{split}-*.tfrecord"))


def summary(output: Path) -> list[str]:
    manifest = Manifest.load(output)
    return [
        "split           images  captions  shards           bytes",
        f"train               19        36       3 {size(output, 'train'):15}",
        f"val                  6        12       1 {size(output, 'val'):15}",
        "images: 26 inputs = 25 written + 1 failed (empty 1) + 0 skipped",
        "captions: 53 inputs = 48 written + 5 failed (empty 2, invalid_caption 2, unknown_image 1)"
        " + 0 skipped",
        "grids: 4 cells of 8 features in float16, of images of 32×32 pixels, aspect ratio squash; "
        "compression none",
        "encoder: resnet50, digest fake, precision float32, runtime tensorflow, weights random:0",
        f"preprocessing: fingerprint {manifest.fingerprint[:12]}",
        "vocabulary: 13 words, 4 of them special, the others seen at least 1 times; most often "
        "red, a, dog, ball, runs, small, one, sees, the",
    ]


def test_the_summary_of_a_small_world(output: Path, show: Show) -> None:
    code, lines, err = show()
    assert lines[:-1] == summary(output)
    lengths = [
        len(tokens)
        for name in sorted(path.stem for path in output.glob("train-*"))
        for row in read_shard(output, name)
        for tokens in row.tokens
    ]
    assert lines[-1] == (
        f"words a caption: mean {np.mean(lengths):.1f}, half have up to 3, 95 % up to 6, longest 6 "
        "(train, 19 images); 0 of all splits cut to 20"
    )
    assert (code, err) == (0, "")
    assert not (output.parent / "records.png").exists()


def test_another_split_is_measured(show: Show) -> None:
    assert show("--split=val")[1][-1] == (
        "words a caption: mean 3.9, half have up to 4, 95 % up to 6, longest 6 (val, 6 images); 0 "
        "of all splits cut to 20"
    )


def test_of_many_images_the_first_are_measured(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_view, "_MEASURED_IMAGES", 2)
    assert "(train, first 2 of 19 images)" in show()[1][-1]


def test_the_first_records_are_printed_and_drawn(
    made: Path, output: Path, show: Show, drawn: list[Picture]
) -> None:
    rows = read_shard(output, VAL)
    code, lines, err = show("--show=2", "--split=val", "--picture=two.png")
    assert (code, err) == (0, "")
    grid = np.asarray(rows[0].grid, np.float32)
    assert rows[0].key == "000000000101.jpg"
    assert lines[10:16] == [
        "",
        f"val 1: 000000000101.jpg, id 101, grid 4×8 from {grid.min():.4g} to {grid.max():.4g}, "
        f"mean {grid.mean():.4g}, 0.0% zeros",
        '  "a small red dog runs"',
        "    5 9 4 6 8 = a small red dog runs",
        '  "the dog sees a red ball"',
        "    12 6 11 5 4 7 = the dog sees a red ball",
    ]
    assert lines[17].startswith("val 2: 000000000102.jpg, id 102, grid 4×8 from ")
    assert lines[-2:] == ["", "picture of 2 records: two.png"]
    assert [picture.title for picture in drawn] == [
        "000000000101.jpg  (id 101)",
        "000000000102.jpg  (id 102)",
    ]
    for picture, row in zip(drawn, rows, strict=False):
        np.testing.assert_array_equal(picture.grid, row.grid)
        assert picture.captions == row.captions
        assert picture.note == ""
        with Image.open(made.parent / "val" / row.key) as photo:
            assert picture.photo is not None
            np.testing.assert_array_equal(picture.photo, np.asarray(photo))


def test_the_share_of_zeros_and_half_characters_are_shown(
    output: Path, show: Show, drawn: list[Picture]
) -> None:
    first, *others = read_shard(output, VAL)
    grid = np.zeros((4, 8), np.float16)
    grid[0] = [1, 2, 3, 4, 5, 6, 7, 8]
    captions = ("tab\there", "日本\x1b[2J")
    forge(output, VAL, [replace(first, grid=grid, captions=captions), *others])
    lines = show("--show=1", "--split=val")[1]
    assert lines[11] == (
        "val 1: 000000000101.jpg, id 101, grid 4×8 from 0 to 8, mean 1.125, 75.0% zeros"
    )
    # Nothing that a caption holds reaches the terminal as a command.
    assert (lines[12], lines[14]) == ('  "tab\\there"', '  "日本\\u001b[2J"')
    assert len(drawn) == 1


def test_a_picture_is_written_where_it_is_wanted(output: Path, show: Show) -> None:
    assert show("--show=1")[1][-1] == "picture of 1 records: records.png"
    assert (output.parent / "records.png").read_bytes().startswith(b"\x89PNG")
    target = output.parent / "deep.jpg"
    assert show("--show=3", f"--picture={target}")[0] == 0
    assert target.read_bytes().startswith(b"\xff\xd8")


def test_more_records_than_there_are(show: Show, drawn: list[Picture]) -> None:
    assert show("--show=1000", "--split=val")[1][-1] == "picture of 6 records: records.png"
    assert len(drawn) == 6


def test_a_picture_stays_small(
    show: Show, drawn: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_view, "_MOST_DRAWN", 4)
    lines = show("--show=6")[1]
    assert sum(line.startswith("train ") and ": 0" in line for line in lines) == 6
    assert lines[-1] == "picture of 4 records: records.png"
    assert len(drawn) == 4


def test_records_whose_photographs_are_gone(output: Path, show: Show, drawn: list[Picture]) -> None:
    spec = output / "_work" / "specs" / f"{VAL}.jsonl"
    text = spec.read_text()
    spec.write_text(text.replace("000000000101.jpg", "none.jpg", 2).replace("none", "x", 1))
    show("--show=2", "--split=val")
    # Its line names another key now.
    assert (drawn[0].photo, drawn[0].note) == (None, "no photograph of this key in _work/specs")
    assert drawn[1].photo is not None
    records_view._items.cache_clear()
    spec.write_text(text.replace("/val/000000000101.jpg", "/val/none.jpg"))
    show("--show=1", "--split=val")
    assert (drawn[2].photo, drawn[2].note) == (None, "photograph: no such file, expected an image")
    records_view._items.cache_clear()
    shutil.rmtree(output / "_work")
    assert show("--show=1", "--split=val")[0] == 0
    assert drawn[3].note == "no photograph of this key in _work/specs"


def test_a_mirror_image_is_shown_with_its_photograph_turned(
    output: Path, made: Path, show: Show, drawn: list[Picture]
) -> None:
    first, *others = read_shard(output, VAL)
    forge(output, VAL, [first, replace(first, key=f"{first.key}#flip"), *others])
    code, lines, _ = show("--show=2", "--split=val")
    assert code == 0
    assert lines[17].startswith("val 2: 000000000101.jpg#flip, id 101, ")
    assert [picture.note for picture in drawn] == ["", ""]
    with Image.open(made.parent / "val" / first.key) as photo:
        pixels = np.asarray(photo)
    assert drawn[1].photo is not None
    np.testing.assert_array_equal(drawn[1].photo, pixels[:, ::-1])
    assert not np.array_equal(drawn[1].photo, pixels)


def test_photographs_in_a_tar_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Picture]
) -> None:
    annotations, images = write_split(tmp_path, "train", 3)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(images, "photos")
    source = Source("train", str(annotations), str(tmp_path / "train.tar"))
    wanted = replace(settings(tmp_path, "tarred"), sources=(source,))
    preprocess(wanted, (), partial(FakeEncoder, tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    assert captionbeam.main(["records", "tarred", "--show=3"]) == 0
    assert [picture.note for picture in drawn] == [""] * 3
    for picture in drawn:
        with Image.open(images / picture.title.partition(" ")[0]) as photo:
            assert picture.photo is not None
            np.testing.assert_array_equal(picture.photo, np.asarray(photo))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--show=0"], "--show 0, expected at least 1"),
        (["--picture=a.png"], "--picture, expected --show N with it"),
        (["--split=test"], "no split 'test' in the records, expected one of ['train', 'val']"),
        (
            ["--show=1", "--picture=a.xyz"],
            "--picture a.xyz, expected a .png, .jpg, .jpeg, .pdf, .svg file",
        ),
        (["--show=1", "--picture=none/a.png"], "--picture none/a.png: cannot be written ("),
    ],
)
def test_flags_that_cannot_be_followed(show: Show, flags: list[str], line: str) -> None:
    code, _, err = show(*flags)
    assert code == 2
    assert err.startswith(f"captionbeam records: {line}")
    assert err.count("\n") == 1


def test_damaged_records_name_the_check(output: Path, show: Show) -> None:
    path = shard(output, FIRST)
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = show()
    assert code == 2
    assert err.startswith(f"captionbeam records: {path}: record ")
    assert err.endswith(
        f"; see what else is wrong with `captionbeam preprocess --check {output}`\n"
    )
    path.unlink()
    assert show()[2].startswith(f"captionbeam records: {path}: no such file; see ")


@pytest.mark.parametrize("lost", ["manifest.json", "vocabulary.json"])
def test_what_is_no_finished_records_directory(output: Path, show: Show, lost: str) -> None:
    (output / lost).unlink()
    code, lines, err = show()
    assert (code, lines) == (2, [])
    assert err.startswith(f"captionbeam records: {output}: cannot be read (")
    assert err.endswith(f"; see `captionbeam preprocess --check {output}`\n")
