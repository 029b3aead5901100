"""preprocess --content images: canonical bytes in the place of grids, all else as it was."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model.errors import InvalidInput
from model.image_bytes import canonicalise
from model.record_figures import Picture
from model.records import GRIDS, IMAGES, Manifest, parse, serialise
from pipelines import records_view
from pipelines.records_job import preprocess
from tests.preprocess_fixtures import FakeEncoder, calls, jpeg, published, settings
from tests.records_fixtures import (
    FIRST,
    GRID_SHAPE,
    VAL,
    copy_records,
    edit_json,
    forge_first,
    make_records,
    read_shard,
    run_command,
    shard,
)

TURNED = f"{101:012d}.jpg"


@pytest.fixture(scope="module", name="made")
def fixture_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of records_fixtures, one of its photographs turned by EXIF, as images."""
    root = tmp_path_factory.mktemp("world")
    make_records(root)
    path = root / "val" / TURNED
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, "JPEG", exif=exif)
    preprocess(settings(root, "images", content=IMAGES), (), partial(FakeEncoder, root / "noted"))
    return root


@pytest.fixture(name="output")
def fixture_output(made: Path, tmp_path: Path) -> Path:
    return copy_records(made / "images", tmp_path / "out")


def shards(output: Path) -> list[str]:
    return sorted(path.stem for path in output.glob("*.tfrecord"))


def test_records_hold_canonical_bytes_and_all_else_that_records_of_grids_hold(made: Path) -> None:
    assert shards(made / "images") == shards(made / "out")
    for name in shards(made / "out"):
        grids, images = read_shard(made / "out", name), read_shard(made / "images", name)
        for grid, image in zip(grids, images, strict=True):
            data = (made / name.split("-")[0] / image.key).read_bytes()
            assert image.image == canonicalise(data).data
            assert image.grid is None
            assert (image.image == data) is (image.key != TURNED)
            for field in ("image_id", "key", "captions", "tokens"):
                assert getattr(image, field) == getattr(grid, field)
    # An unreadable photograph among them.
    for file in ("failures.jsonl", "vocabulary.json"):
        assert (made / "images" / file).read_bytes() == (made / "out" / file).read_bytes()


def test_the_manifest_names_the_encoder_that_never_ran(made: Path) -> None:
    grids, images = (json.loads((made / name / "manifest.json").read_text()) for name in
                     ("out", "images"))  # fmt: skip
    assert (grids.pop("content"), images.pop("content")) == (GRIDS, IMAGES)
    assert grids.pop("splits") != images.pop("splits")
    assert grids == images
    assert images["encoder"]["digest"] == FakeEncoder.digest
    assert calls(made / "noted") == 0


def test_the_same_bytes_again_and_after_an_interruption(made: Path) -> None:
    wanted = settings(made, "again", content=IMAGES)
    encoder = partial(FakeEncoder, made / "noted")
    preprocess(wanted, (), encoder)
    again = made / "again"
    assert published(again) == published(made / "images")
    # As a kill leaves it: one shard not finished, no manifest.
    (again / "manifest.json").unlink()
    (again / "_work" / "done" / f"{FIRST}.json").unlink()
    shard(again, FIRST).unlink()
    preprocess(wanted, (), encoder)
    assert published(again) == published(made / "images")


def test_images_are_parsed_in_a_graph(made: Path) -> None:
    rows = read_shard(made / "images", VAL)
    payloads = tf.data.Dataset.from_tensor_slices([serialise(row) for row in rows]).batch(9)
    (parsed,) = payloads.map(lambda batch: parse(batch, GRID_SHAPE, content=IMAGES))
    assert parsed["image"].numpy().tolist() == [row.image for row in rows]
    assert parsed["image_id"].numpy().tolist() == [row.image_id for row in rows]
    assert "grid" not in parsed


def test_what_tensorflow_cannot_decode_fails_as_it_does_for_grids(
    tmp_path: Path, made: Path
) -> None:
    # Whole for Pillow's header, cut for whoever reads its pixels.
    changed = made / "train" / f"{5:012d}.jpg"
    whole = changed.read_bytes()
    changed.write_bytes(jpeg(5, (400, 300))[:-2000])
    try:
        for content in (GRIDS, IMAGES):
            wanted = settings(made, str(tmp_path / content), content=content)
            preprocess(wanted, (), partial(FakeEncoder, tmp_path / "log"))
    finally:
        changed.write_bytes(whole)
    grids, images = (
        (tmp_path / content / "failures.jsonl").read_text().splitlines()
        for content in (GRIDS, IMAGES)
    )
    assert grids == images
    assert sum(changed.name in row for row in images) == 1


def test_a_sound_directory_is_checked(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = run_command(capsys, "preprocess", "--check", str(output))
    assert (code, err) == (0, "")
    assert "sound" in lines[-1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"image": b""}, "record 1 (000000000101.jpg): image: 0 bytes, expected an image"),
        (
            {"image": b"GIF89a"},
            "record 1 (000000000101.jpg): image: starts with b'GIF89a', expected",
        ),
        ({"image": jpeg(1, (400, 300))[:-900]}, "record 1 (000000000101.jpg): image: JPEG: "),
        ({"image": None, "grid": np.zeros(GRID_SHAPE, np.float16)}, "record 1: features captions"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_found_and_made_again(
    output: Path,
    made: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    line: str,
) -> None:
    forge_first(output, VAL, **change)
    code, lines, _ = run_command(capsys, "preprocess", "--check", str(output))
    assert code == 1
    assert lines[0].startswith(f"{VAL}.tfrecord: {line}")
    command = ("preprocess", "--check", str(output), "--repair")
    # The world's encoder is no ResNet50, so only what needs none can be made again.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.records_repair.Encoder", lambda _: FakeEncoder(made / "noted"))
        assert run_command(capsys, *command)[0] == 0
    assert published(output) == published(made / "images")


def test_an_image_that_is_not_upright_rgb_is_no_canonical_one(
    output: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge_first(output, VAL, image=(made / "val" / TURNED).read_bytes())
    _, lines, _ = run_command(capsys, "preprocess", "--check", str(output))
    assert lines[0].startswith(
        f"{VAL}.tfrecord: record 1 ({TURNED}): image that is not canonical, expected an upright "
        "RGB JPEG or PNG"
    )


def test_records_are_shown_with_their_own_photographs(
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (output / "_work").rename(output / "gone")
    picture = tmp_path / "two.png"
    flags = ("--show=2", "--split=val", f"--picture={picture}")
    code, lines, err = run_command(capsys, "records", str(output), *flags)
    assert (code, err) == (0, "")
    assert lines[5] == (
        "images: JPEG and PNG, for an encoder that sees 32×32 pixels, aspect ratio squash, and "
        "grids of 4 cells of 8 features"
    )
    row = read_shard(output, VAL)[0]
    assert row.image is not None
    assert f"val 1: {TURNED}, id 101, image of {len(row.image)} bytes" in lines
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn: list[Picture] = []
    monkeypatch.setattr(records_view, "draw_records", lambda pictures, _: drawn.extend(pictures))
    run_command(capsys, "records", str(output), *flags)
    # Upright.
    assert drawn[0].photo is not None
    assert drawn[0].photo.shape == (40, 30, 3)
    assert (drawn[0].grid, drawn[0].note) == (None, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": "pixels"}, "content 'pixels', expected one of grids, images"),
        (
            {"content": IMAGES, "compression": "zlib"},
            "compression zlib with content images, expected none: JPEG and PNG are compressed "
            "already",
        ),
        (
            {"content": IMAGES, "flip_copies": True},
            "flip_copies with content images, expected content grids; leave out --flip_copies",
        ),
    ],
)
def test_settings_that_do_not_fit(made: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(made, "none", **changes)
    assert str(caught.value) == message


def test_what_was_made_before_there_were_images_is_of_grids(made: Path, tmp_path: Path) -> None:
    output = copy_records(made / "out", tmp_path / "old")
    job = json.loads((output / "_work" / "job.json").read_text())
    assert "content" not in job["settings"]
    edit_json(output / "manifest.json", lambda manifest: manifest.pop("content"))
    assert Manifest.load(output).content == GRIDS
    edit_json(output / "manifest.json", lambda manifest: manifest.update(content="pixels"))
    with pytest.raises(InvalidInput, match=r"not a manifest of captionbeam \('pixels'\)"):
        Manifest.load(output)


def test_an_output_of_grids_is_not_gone_on_with_as_images(made: Path) -> None:
    with pytest.raises(InvalidInput, match='content is null there, "images" now'):
        preprocess(settings(made, "out", content=IMAGES), (), partial(FakeEncoder, made / "noted"))
