import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import captionbeam
from model import records
from model.encoder import Encoder, EncoderSettings
from model.errors import CheckFailed, InvalidInput
from model.image_bytes import canonicalise
from model.preprocessing import prepare
from model.vocabulary import Vocabulary
from pipelines import preprocess as command
from pipelines.image_files import read_image_file
from pipelines.plan import find_plan
from pipelines.records_job import PreprocessSettings, preprocess
from pipelines.source_flags import Source, parse_source
from tests.bulk_fixtures import bad_images, encode, good_images
from tests.preprocess_fixtures import FakeEncoder, calls, jpeg, published, settings, write_split

COCO80 = Path(__file__).parents[1].parent / "shared" / "data" / "coco80"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", 20)
    write_split(tmp_path, "val", 6, first_id=101)
    return tmp_path


def make(world: Path, output: str = "out", beam_args: tuple[str, ...] = (), **changes: Any) -> Path:
    """Preprocess with the fake encoder, whose calls are noted in OUTPUT.log."""
    encoder_fields = {
        name: changes.pop(name) for name in ("stop_at", "kill", "scale") if name in changes
    }
    encoder = partial(FakeEncoder, world / f"{output}.log", **encoder_fields)
    preprocess(settings(world, output, **changes), beam_args, encoder)
    return world / output


def read(output: Path, split: str) -> list[dict[str, Any]]:
    manifest = records.Manifest.load(output)
    rows = []
    for shard in manifest.shards(split):
        for payload in tf.data.TFRecordDataset(str(output / shard.file)):
            parsed = records.parse(payload[tf.newaxis], manifest.grid_shape, manifest.compression)
            rows.append({name: value[0] for name, value in parsed.items()})
    return rows


def failures(output: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]


def test_every_image_becomes_a_record_with_its_own_grid_and_captions(world: Path) -> None:
    output = make(world)
    manifest = records.Manifest.load(output)
    vocabulary = Vocabulary.load(output / "vocabulary.json")
    encoder = FakeEncoder(world / "expected.log")
    rows = read(output, "train")
    annotations = json.loads((world / "captions_train.json").read_text())["annotations"]

    assert sorted(int(row["image_id"]) for row in rows) == list(range(1, 21))
    for row in rows:
        image_id = int(row["image_id"])
        assert row["key"].numpy().decode() == f"{image_id:012d}.jpg"
        image = prepare(tf.constant(canonicalise(jpeg(image_id)).data), 32).image
        expected = encoder(image[tf.newaxis].numpy())[0].numpy().astype(np.float16)
        np.testing.assert_array_equal(row["grid"].numpy(), expected)
        captions = [a["caption"] for a in annotations if a["image_id"] == image_id]
        assert [caption.decode() for caption in row["captions"].numpy()] == captions
        assert row["tokens"].to_list() == [vocabulary.encode(caption) for caption in captions]
    assert manifest.num_images("val") == 6
    assert manifest.ledger == {"inputs": 26, "written": 26, "failed": {}, "skipped": 0}
    assert manifest.caption_ledger["written"] == 52
    assert manifest.vocabulary["digest"] == vocabulary.digest


def test_the_vocabulary_is_that_of_the_training_split_alone(world: Path) -> None:
    path = world / "captions_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = "zebra zebra zebra"
    path.write_text(json.dumps(content))
    vocabulary = Vocabulary.load(make(world, min_word_count=5) / "vocabulary.json")
    counts: dict[str, int] = {}
    for annotation in json.loads((world / "captions_train.json").read_text())["annotations"]:
        for word in annotation["caption"].split():
            counts[word] = counts.get(word, 0) + 1
    assert vocabulary == Vocabulary.build(counts, 5)
    assert "zebra" not in vocabulary.words


def test_long_captions_are_cut_and_counted(world: Path) -> None:
    output = make(world, max_words=3)
    assert max(len(caption) for row in read(output, "train") for caption in row["tokens"]) == 3
    content = json.loads((world / "captions_train.json").read_text())["annotations"]
    content += json.loads((world / "captions_val.json").read_text())["annotations"]
    expected = sum(len(annotation["caption"].split()) > 3 for annotation in content)
    assert records.Manifest.load(output).caption_ledger["cut"] == expected > 0


def spoil(world: Path) -> None:
    """One of everything that can be wrong with an image or a caption of the training split."""
    train = world / "train"
    names = {image_id: train / f"{image_id:012d}.jpg" for image_id in range(1, 21)}
    names[1].unlink()
    names[2].write_bytes(b"")
    names[3].write_bytes(jpeg(3, (640, 480))[:-2000])
    names[4].write_bytes(b"<!DOCTYPE html><title>404</title>")
    names[5].write_bytes(jpeg(5, (1, 1)))
    names[6].unlink()
    names[6].mkdir()
    path = world / "captions_train.json"
    content = json.loads(path.read_text())
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    by_id[70]["caption"] = " ... "
    by_id[80]["caption"] = None
    by_id[81]["caption"] = 7
    by_id[90]["caption"] = "half \ud83d a smile"
    content["images"].append({"id": 77, "file_name": "never.jpg"})
    content["annotations"].append({"id": 999, "image_id": 12345, "caption": "a lost caption"})
    path.write_text(json.dumps(content))


def test_what_fails_is_a_row_and_its_neighbours_are_untouched(world: Path) -> None:
    before = {int(row["image_id"]): row for row in read(make(world, "clean"), "train")}
    spoil(world)
    output = make(world)
    rows = {(row["key"], row["reason"]): row for row in failures(output)}
    name = "{:012d}.jpg".format
    messages = {
        ("annotation 999", "unknown_image"): "image_id 12345, expected one of the file's images",
        (name(1), "missing_file"): "no such file, expected an image",
        (name(2), "empty"): "0 bytes, expected an image",
        (name(3), "truncated"): None,
        (name(4), "not_an_image"): None,
        (name(5), "too_small"): "1×1 pixels, expected at least 8 a side",
        (name(6), "unreadable"): None,
        (name(7), "invalid_caption"): (
            "annotation 70: caption ' ... ' without words, expected a sentence"
        ),
        (name(8), "invalid_caption"): ("annotation 81: a caption of type int, expected a sentence"),
        (name(8), "no_valid_caption"): ("none of its 2 captions is valid, expected at least one"),
        (name(9), "invalid_caption"): (
            "annotation 90: caption 'half \\ud83d a smile' with half a character, "
            "expected a sentence"
        ),
    }
    assert rows.keys() == messages.keys()
    assert len(failures(output)) == len(messages) + 1  # annotations 80 and 81 share key and reason
    for key, message in messages.items():
        assert message in (None, rows[key]["message"])
        assert rows[key]["stage"] == "preprocess"
    assert rows[name(1), "missing_file"]["source"] == str(world / "train" / name(1))

    manifest = records.Manifest.load(output)
    assert manifest.ledger == {
        "inputs": 27,
        "written": 19,
        "failed": {
            "empty": 1,
            "missing_file": 1,
            "no_valid_caption": 1,
            "not_an_image": 1,
            "too_small": 1,
            "truncated": 1,
            "unreadable": 1,
        },
        "skipped": 1,
    }
    assert manifest.caption_ledger == {
        "inputs": 53,
        "written": 36,
        "failed": {
            "empty": 2,
            "invalid_caption": 4,
            "missing_file": 2,
            "not_an_image": 2,
            "too_small": 2,
            "truncated": 2,
            "unknown_image": 1,
            "unreadable": 2,
        },
        "skipped": 0,
        "cut": 0,
    }
    after = {int(row["image_id"]): row for row in read(output, "train")}
    assert after.keys() == before.keys() - {1, 2, 3, 4, 5, 6, 8}
    for image_id, row in after.items():
        np.testing.assert_array_equal(row["grid"].numpy(), before[image_id]["grid"].numpy())
    assert [caption.decode() for caption in after[7]["captions"].numpy()] == ["one ball"]


def test_a_grid_that_float16_cannot_hold_is_a_failure(world: Path) -> None:
    output = make(world, scale=800)
    ledger = records.Manifest.load(output).ledger
    assert ledger["failed"]["not_finite"] == 26 - ledger["written"] > 0
    assert {row["reason"] for row in failures(output)} == {"not_finite"}
    assert all(np.isfinite(row["grid"].numpy()).all() for row in read(output, "train"))


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(world: Path) -> None:
    expected = published(make(world, "whole"))
    with pytest.raises(RuntimeError, match="the machine went away"):
        make(world, stop_at=3)
    output, log = world / "out", world / "out.log"
    assert not (output / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.tfrecord")}
    assert len(finished) == 2

    assert published(make(world)) == expected
    assert calls(log) == 3 + 2  # 4 shards, of which the third had failed
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert not list(output.rglob("*.tmp-*"))


def test_a_complete_output_is_left_alone(world: Path) -> None:
    before = published(make(world))
    assert published(make(world)) == before
    assert calls(world / "out.log") == 4
    outcome = preprocess(settings(world, "out"), (), partial(FakeEncoder, world / "out.log"))
    assert outcome.was_complete


def test_a_shard_whose_file_was_cut_is_made_again(world: Path) -> None:
    output = make(world)
    before = published(output)
    shard = next(output.glob("train-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert published(make(world)) == before
    assert calls(world / "out.log") == 4 + 1


def test_while_a_lost_shard_is_made_again_no_manifest_vouches_for_it(world: Path) -> None:
    output = make(world)
    before = published(output)
    next(output.glob("train-*.tfrecord")).unlink()
    with pytest.raises(RuntimeError, match="the machine went away"):
        make(world, stop_at=4 + 1)
    assert not (output / "manifest.json").exists()
    assert published(make(world)) == before


@pytest.mark.parametrize("lost", ["vocabulary.json", "failures.jsonl"])
def test_a_lost_file_beside_the_shards_is_written_again(world: Path, lost: str) -> None:
    output = make(world)
    before = published(output)
    (output / lost).unlink()
    assert published(make(world)) == before
    assert calls(world / "out.log") == 4


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"max_words": 7}, "max_words is 20 there, 7 now"),
        ({"min_word_count": 2}, "min_word_count is 1 there, 2 now"),
        ({"shard_size": 4}, "shard_size is 8 there, 4 now"),
        ({"compression": "zlib"}, 'compression is "none" there, "zlib" now'),
        ({"flip_copies": True}, "flip_copies is false there, true now"),
        (
            {"encoder": EncoderSettings("random:0", 32, 1, "keep")},
            'aspect is "squash" there, "keep" now',
        ),
        (
            {"encoder": EncoderSettings("random:0", 32, 1, runtime="openvino")},
            'encoder_runtime is "tensorflow" there, "openvino" now',
        ),
        (
            {"encoder": EncoderSettings("random:0", 64, 1)},
            "image_size is 32 there, 64 now",
        ),
    ],
)
def test_another_job_in_the_same_output_is_refused(
    world: Path, changes: dict[str, Any], difference: str
) -> None:
    output = make(world)
    with pytest.raises(InvalidInput) as caught:
        make(world, **changes)
    assert str(caught.value) == (
        f"{output} holds another job: {difference}; take another --output, or the flags of the "
        "first run to resume it"
    )


def test_changed_annotations_are_another_job(world: Path) -> None:
    make(world)
    path = world / "captions_val.json"
    path.write_text(path.read_text().replace("one ball", "two balls"))
    with pytest.raises(InvalidInput, match="its inputs are others than the ones named now"):
        make(world)


def test_a_wrong_flag_that_finished_nothing_does_not_block_the_output(world: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(world, min_word_count=1000)
    assert str(caught.value).startswith("min_word_count 1000, but no word of the training captions")
    assert published(make(world)) == published(make(world, "fresh"))


def test_records_without_the_work_directory_of_their_job_are_not_overwritten(world: Path) -> None:
    output = make(world)
    (output / "_work").rename(world / "elsewhere")
    with pytest.raises(InvalidInput, match="holds finished records without the _work of their job"):
        make(world)


def test_threads_give_the_same_bytes(world: Path) -> None:
    spoil(world)
    expected = published(make(world, "one"))
    arguments = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
    assert published(make(world, "two", arguments)) == expected


@pytest.mark.slow
def test_processes_give_the_same_bytes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(world)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    expected = published(make(world, "one"))
    arguments = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert published(make(world, "two", arguments)) == expected


@pytest.mark.slow
def test_a_killed_launcher_is_resumed_in_the_same_bytes(world: Path) -> None:
    expected = published(make(world, "whole"))
    program = (
        "import sys; from pathlib import Path; from tests.test_pipelines_preprocess import make; "
        "make(Path(sys.argv[1]), stop_at=2, kill=True)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(world)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=1200,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list((world / "out").glob("*.tmp-*"))
    assert published(make(world)) == expected
    assert calls(world / "out.log") == 2 + 3
    assert not list((world / "out").rglob("*.tmp-*"))


@pytest.mark.slow
def test_real_grids_are_those_of_the_encoder(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 5)
    wanted = EncoderSettings("random:0", 64, 1)
    preprocess(settings(tmp_path, "out", encoder=wanted), ())
    rows = sorted(read(tmp_path / "out", "train"), key=lambda row: int(row["image_id"]))
    images = [prepare(tf.constant(jpeg(image_id)), 64).image for image_id in range(1, 6)]
    expected = Encoder(wanted)(tf.stack(images)).numpy()
    grids = np.stack([row["grid"].numpy() for row in rows])
    np.testing.assert_allclose(grids, expected, rtol=2e-3, atol=1e-4)
    # Not the grids of another image, or of none.
    assert np.abs(expected[0] - expected[1]).mean() > 0.1 * expected.mean()


@pytest.mark.skipif(not COCO80.is_dir(), reason=f"no photographs in {COCO80}")
def test_real_photographs_all_become_records(tmp_path: Path) -> None:
    source = Source(
        "train", str(COCO80 / "annotations/captions_train2017.json"), str(COCO80 / "images")
    )
    encoder = EncoderSettings("random:0", 32, 1)
    wanted = PreprocessSettings((source,), str(tmp_path / "out"), encoder=encoder)
    outcome = preprocess(wanted, (), partial(FakeEncoder, tmp_path / "log"))
    assert outcome.manifest.ledger["written"] == 80
    assert outcome.manifest.caption_ledger["written"] == 400


def arguments(world: Path, *more: str) -> list[str]:
    split = f"--split=train={world}/captions_train.json:{world}/train"
    flags = ["--output", str(world / "out"), "--encoder_weights=random:0", "--image_size=32"]
    return ["preprocess", split, *flags, "--grid_size=1", "--min_word_count=1", *more]


def test_the_command_reports_and_ends_with_0(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captionbeam.main(arguments(world)) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        "split          images  captions  shards",
        "train              20        40       1",
        "images:   20 inputs = 20 written + 0 failed + 0 skipped",
    ]
    assert err == ""
    assert captionbeam.main(arguments(world)) == 0
    assert capsys.readouterr().out.startswith(f"{world}/out is complete already")


def test_too_many_failures_end_with_1_after_publishing(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image_id in (1, 2, 3):
        (world / "train" / f"{image_id:012d}.jpg").unlink()
    (world / "train" / f"{4:012d}.jpg").write_bytes(b"")
    expected = (
        "captionbeam preprocess: 4 of 20 images failed (20.0%), expected at most 10.0%: "
        "missing_file 3, empty 1 (missing_file: see that the input lists files that are there; "
        f"empty: copy or download the files again); see {world}/out/failures.jsonl, mend what it "
        "names and take another --output, or raise --max_failure_rate\n"
    )
    for _ in range(2):
        assert captionbeam.main(arguments(world)) == 1
        assert capsys.readouterr().err == expected
    assert records.Manifest.load(world / "out").ledger["written"] == 16
    assert captionbeam.main(arguments(world, "--max_failure_rate=0.2")) == 0


@pytest.fixture
def fake_encoder(world: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """The command's encoder, in place of ResNet50."""
    encoder = FakeEncoder(world / "command.log")
    monkeypatch.setattr("pipelines.records_job.Encoder", lambda _: encoder)
    return encoder


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("weights.h5", "{world}/weights.h5"),
        ("/elsewhere/weights.h5", "/elsewhere/weights.h5"),
        ("imagenet", "imagenet"),
        ("random:7", "random:7"),
    ],
)
def test_a_weights_file_is_found_again_from_another_directory(
    world: Path, fake_encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    del fake_encoder
    monkeypatch.chdir(world)
    assert captionbeam.main(arguments(world, f"--encoder_weights={given}")) == 0
    found = find_plan(str(world / "out"))
    assert found is not None
    assert found[1].encoder.weights == kept.format(world=world)


def write_images(world: Path, images: Mapping[str, bytes]) -> None:
    """Make them the training split, a caption each."""
    for name, data in images.items():
        path = world / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    rows = [{"id": number, "file_name": name} for number, name in enumerate(images)]
    captions = [{"id": row["id"], "image_id": row["id"], "caption": "a picture"} for row in rows]
    content = json.dumps({"images": rows, "annotations": captions})
    (world / "captions_train.json").write_text(content)


def halves(above: str, below: str) -> bytes:
    """A PNG of two colours."""
    image = Image.new("RGB", (32, 32), above)
    image.paste(below, (0, 16, 32, 32))
    return encode(image, "PNG")


def test_every_kind_of_file_ends_as_a_record_or_as_a_named_failure(
    world: Path, fake_encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad_images()
    write_images(world, good_images() | {name: data for name, (data, _) in bad.items()})
    assert captionbeam.main(arguments(world, "--max_failure_rate=0.6")) == 0
    assert "images:   9 inputs = 4 written + 5 failed (" in capsys.readouterr().out
    expected = {name: reason for name, (_, reason) in bad.items()}
    assert {row["key"]: row["reason"] for row in failures(world / "out")} == expected

    # What a person sees in each: upright, of the first frame, in RGB.
    seen = {
        "plain.png": good_images()["plain.png"],
        "sub/rotated.jpg": halves("navy", "yellow"),
        "cmyk.jpg": halves("#ff3737", "#ff3737"),
        "moving.gif": halves("blue", "blue"),
    }
    rows = {
        row["key"].numpy().decode(): row["grid"].numpy() for row in read(world / "out", "train")
    }
    assert rows.keys() == seen.keys()
    for name, data in seen.items():
        grid = fake_encoder(prepare(tf.constant(data), 32).image[tf.newaxis].numpy())[0].numpy()
        # JPEG's loss, and the seam between two colours.
        np.testing.assert_allclose(rows[name], grid, atol=10, err_msg=name)


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("flags", [[], ["--max_failure_rate=1"]])
def test_a_training_split_without_a_record_is_not_published(
    world: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (world / "train").iterdir():
        path.unlink()
    (world / "train" / f"{1:012d}.jpg").write_bytes(b"")
    val = f"--split=val={world}/captions_val.json:{world}/val"
    for _ in range(2):
        assert captionbeam.main(arguments(world, val, *flags)) == 1
        assert capsys.readouterr().err == (
            "captionbeam preprocess: split train: 0 of 20 images written, expected at least one: "
            f"missing_file 19, empty 1; see {world}/out/failures.jsonl, mend what it names and "
            "take another --output\n"
        )
    assert not (world / "out" / "manifest.json").exists()
    assert len(failures(world / "out")) == 20


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--max_failure_rate=2"], "max_failure_rate 2.0, expected 0 to 1"),
        (["--image_size=31"], "image_size 31, expected at least 32 pixels"),
        (["--aspect=crop"], "aspect 'crop', expected one of squash, keep"),
        (["--compression=zip"], "compression 'zip', expected one of none, zlib"),
        (["--encoder_runtime=onnx"], "encoder_runtime 'onnx', expected one of tensorflow, open"),
        (["--encoder_precision=int8"], "encoder_precision 'int8', expected one of float32, mix"),
        (
            ["--encoder_runtime=openvino", "--encoder_precision=mixed_float16"],
            "encoder_precision mixed_float16 with encoder_runtime openvino, expected float32",
        ),
        (["--max_words=0"], "max_words 0, expected at least 1"),
        (["--encoder_weights=random:x"], "encoder weights 'random:x', expected random:SEED"),
        (["--split=val={world}/none.json:{world}/val"], "{world}/none.json: cannot be read"),
        (["--split=val={world}/captions_val.json:{world}/no"], "images {world}/no: no such dir"),
        (["--split=val={world}/captions_val.json:foo://no"], "images foo://no: no filesystem"),
        (["--karpathy={world}/none.json"], "{world}/none.json: cannot be read"),
        (["--output={world}/captions_val.json"], "{world}/captions_val.json: cannot be used"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(
    world: Path, flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.format(world=world) for flag in flags]
    assert captionbeam.main(arguments(world, *flags)) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"captionbeam preprocess: {line.format(world=world)}")
    assert err.count("\n") == 1
    assert out == ""


def test_help_names_the_defaults_of_the_settings(tmp_path: Path) -> None:
    encoder, wanted = EncoderSettings(), PreprocessSettings((), "out")
    defaults = {
        "image_size": encoder.image_size,
        "grid_size": encoder.grid_size,
        "encoder_weights": encoder.weights,
        "min_word_count": wanted.min_word_count,
        "max_words": wanted.max_words,
        "shard_size": wanted.shard_size,
        "aspect": encoder.aspect,
        "encoder_runtime": encoder.runtime,
        "compression": wanted.compression,
    }
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    helps = {action.dest: str(action.help) for action in parser._actions}
    assert {name: helps[name].rpartition("(")[2] for name in defaults} == {
        name: f"{value})" for name, value in defaults.items()
    }
    split = f"train=a.json:{tmp_path}"
    args = parser.parse_args(["--split", split, "--output=/out"])
    expected = replace(wanted, sources=(parse_source(split),), output="/out")
    assert command._settings(args) == expected


def test_no_training_split_ends_with_2(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = f"--split=val={world}/captions_val.json:{world}/val"
    assert captionbeam.main(["preprocess", split, *arguments(world)[2:]]) == 2
    assert "splits ['val'], expected one named train" in capsys.readouterr().err


@pytest.mark.parametrize("compression", records.COMPRESSIONS)
def test_flip_copies_are_records_of_the_training_split(world: Path, compression: str) -> None:
    plain = {str(row["key"].numpy(), "utf-8"): row for row in read(make(world, "plain"), "train")}
    output = make(world, flip_copies=True, compression=compression)
    rows = {str(row["key"].numpy(), "utf-8"): row for row in read(output, "train")}
    assert rows.keys() == plain.keys() | {key + "#flip" for key in plain}
    for key, row in plain.items():
        copy = rows[key + "#flip"]
        np.testing.assert_array_equal(rows[key]["grid"].numpy(), row["grid"].numpy())
        assert np.abs(copy["grid"].numpy() - row["grid"].numpy()).max() > 0.5
        assert copy["image_id"] == row["image_id"]
        assert copy["tokens"].to_list() == row["tokens"].to_list()
    manifest = records.Manifest.load(output)
    assert (manifest.num_images("train"), manifest.num_images("val")) == (40, 6)
    assert sum(shard.captions for shard in manifest.shards("train")) == 80
    assert manifest.flip_copies == 20
    # The ledgers count images and captions of the source.
    assert manifest.ledger == {"inputs": 26, "written": 26, "failed": {}, "skipped": 0}
    assert manifest.caption_ledger["written"] == 52
    assert manifest.compression == compression


@pytest.mark.skipif(not COCO80.is_dir(), reason=f"no photographs in {COCO80}")
@pytest.mark.slow
def test_float16_keeps_eleven_bits_of_every_value(tmp_path: Path) -> None:
    """Half a unit in the last place: 2^-11 of the value, or 2^-25 below 2^-14."""
    source = Source(
        "train", str(COCO80 / "annotations/captions_train2017.json"), str(COCO80 / "images")
    )
    encoder = EncoderSettings("random:0", 64, 2)
    preprocess(PreprocessSettings((source,), str(tmp_path / "out"), encoder=encoder), ())
    rows = read(tmp_path / "out", "train")
    images = [
        prepare(
            tf.constant(read_image_file(str(COCO80 / "images" / row["key"].numpy().decode()))), 64
        )
        for row in rows
    ]
    exact = Encoder(encoder)(tf.stack([image.image for image in images])).numpy()
    stored = np.stack([row["grid"].numpy() for row in rows]).astype(np.float32)
    error = np.abs(stored - exact)
    # Batches of another size compute with errors of their own, some 1e-6 of the mean.
    slack = 1e-5 * exact.mean()
    assert (error <= np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25) + slack).all()
    assert error.mean() < 2.0**-12 * exact.mean()
    assert error.max() > 0


def test_weights_that_cannot_be_had_end_the_job_before_an_image_is_read(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(**_: Any) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "ResNet50", no_network)
    monkeypatch.setattr("pipelines.features.canonicalise", pytest.fail)
    with pytest.raises(InvalidInput) as caught:
        preprocess(settings(world, "out", encoder=EncoderSettings()), ())
    assert str(caught.value) == (
        "ImageNet weights could not be downloaded (URL fetch failure); pass a weights file or "
        "random:SEED as --encoder_weights"
    )
    assert not (world / "out").exists()


def test_a_ledger_that_does_not_balance_is_not_published(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.publication.failed_by_reason", lambda results: {"lost": len(results)}
    )
    with pytest.raises(
        CheckFailed, match="the image ledger does not balance: 30 accounted for, 26"
    ):
        make(world)
    assert not (world / "out" / "manifest.json").exists()
