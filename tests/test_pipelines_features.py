import random
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from apache_beam.utils.shared import Shared
from PIL import Image

from model import image_bytes, records
from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import Canonical, Limits
from model.preprocessing import KEEP, SQUASH
from model.vocabulary import Vocabulary
from pipelines import features
from pipelines.features import Features, FeatureSettings
from pipelines.jobs import Item
from pipelines.preparing import shared_preparer
from tests.preprocess_fixtures import IMAGE_SIZE, FakeEncoder, calls, jpeg

SETTINGS = FeatureSettings(IMAGE_SIZE, SQUASH, records.NO_COMPRESSION, max_words=20)
COCO80 = Path(__file__).parents[1].parent / "shared" / "data" / "coco80" / "images"


class RecordingSink:
    """Keeps what it is given, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Any]] = []
        self.counts: list[Mapping[str, int]] = []

    def write(self, payload: bytes, **counts: int) -> None:
        # 12 bytes of framing before the payload, 4 behind it.
        parsed = records.parse(tf.constant([payload[12:-4]]), FakeEncoder.grid_shape)
        self.rows.append((parsed["key"][0].numpy().decode(), parsed["grid"][0].numpy()))
        self.counts.append(counts)

    write_copy = write

    def fail(self, item: Item, failure: ItemFailure, **counts: int) -> None:
        self.rows.append((item["key"], failure.reason))
        self.counts.append(counts)

    def fail_part(self, item: Item, failure: ItemFailure) -> None:
        self.rows.append((item["key"], failure.reason))


def items(directory: Path, count: int) -> list[Item]:
    for number in range(count):
        (directory / f"{number:03d}").write_bytes(jpeg(number))
    return [item(directory / f"{number:03d}", number) for number in range(count)]


def item(path: Path, number: int = 0) -> Item:
    return {"key": path.name, "source": str(path), "image_id": number, "captions": [[1, "a dog"]]}


def process(
    tmp_path: Path, todo: list[Item], settings: FeatureSettings = SETTINGS
) -> RecordingSink:
    vocabulary = tmp_path / "vocabulary.json"
    Vocabulary.build({"a": 1, "dog": 1}, 1).save(vocabulary)
    encoder = partial(FakeEncoder, tmp_path / "log")
    work = Features(encoder, Shared(), "fake", str(vocabulary), settings)
    work.setup()
    sink = RecordingSink()
    work.process(todo, sink)  # type: ignore[arg-type]
    return sink


def test_failures_stand_between_their_neighbours_and_change_none(tmp_path: Path) -> None:
    todo = items(tmp_path, 2 * FakeEncoder.batch_size + 3)
    clean = dict(process(tmp_path, todo).rows)
    bad = {0, 5, FakeEncoder.batch_size, 2 * FakeEncoder.batch_size + 2}
    for number in bad:
        Path(todo[number]["source"]).write_bytes(b"no image")
    sink = process(tmp_path, todo)
    assert [key for key, _ in sink.rows] == [item["key"] for item in todo]
    for number, (key, outcome) in enumerate(sink.rows):
        if number in bad:
            assert outcome is Reason.NOT_AN_IMAGE
        else:
            np.testing.assert_array_equal(outcome, clean[key])
    assert sink.counts[0] == {"lost_captions_not_an_image": 1}
    assert sink.counts[1] == {"captions": 1, "cut_captions": 0}


def test_images_are_encoded_in_batches(tmp_path: Path) -> None:
    process(tmp_path, items(tmp_path, 2 * FakeEncoder.batch_size + 3))
    assert (tmp_path / "log").read_text().split() == [
        str(FakeEncoder.batch_size),
        str(FakeEncoder.batch_size),
        "3",
    ]


def test_a_batch_of_failures_calls_no_encoder(tmp_path: Path) -> None:
    sink = process(tmp_path, [item(tmp_path / f"none{number}") for number in range(3)])
    assert [outcome for _, outcome in sink.rows] == [Reason.MISSING_FILE] * 3
    assert calls(tmp_path / "log") == 0


def test_what_tensorflow_cannot_decode_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def canonicalise(data: bytes, read_pixels: bool = True) -> Canonical:
        del read_pixels
        return Canonical(b"\xff\xd8" + data, 9, 9)

    monkeypatch.setattr(features, "canonicalise", canonicalise)
    sink = process(tmp_path, items(tmp_path, 1))
    assert sink.rows == [("000", Reason.DECODE)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none", Reason.MISSING_FILE), ("folder", Reason.UNREADABLE), ("nul\0l", Reason.MISSING_FILE)],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, reason: Reason) -> None:
    (tmp_path / "folder").mkdir()
    sink = process(tmp_path, [item(tmp_path / name)])
    assert sink.rows == [(name, reason)]


def test_a_huge_file_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(50 * 2**30)
    seen: list[int] = []

    def canonicalise(data: bytes, read_pixels: bool = True) -> Canonical:
        seen.append(len(data))
        return image_bytes.canonicalise(data, read_pixels=read_pixels)

    monkeypatch.setattr(features, "canonicalise", canonicalise)
    sink = process(tmp_path, [item(path)])
    assert sink.rows == [("huge.jpg", Reason.TOO_MANY_BYTES)]
    assert seen == [Limits().max_bytes + 1]


def test_one_encoder_serves_all_threads_of_a_process(tmp_path: Path) -> None:
    made = []

    def make() -> FakeEncoder:
        made.append(FakeEncoder(tmp_path / "log"))
        return made[-1]

    shared = Shared()
    for _ in range(2):
        Features(make, shared, "fake", "", SETTINGS).setup()
    assert len(made) == 1


def flipping(todo: list[Item], *captions: str) -> list[Item]:
    numbered = [list(pair) for pair in enumerate(captions or ("a dog",))]
    return [{**item, "flip": True, "captions": numbered} for item in todo]


def resave(todo: list[Item], change: Callable[[Image.Image], Image.Image]) -> None:
    for original in todo:
        with Image.open(original["source"]) as image:
            image.load()
        change(image).save(original["source"], "PNG")


@pytest.mark.parametrize("aspect", [SQUASH, KEEP])
def test_a_flip_copy_is_the_record_of_the_mirrored_photograph(tmp_path: Path, aspect: str) -> None:
    settings = replace(SETTINGS, aspect=aspect)
    todo = items(tmp_path, 3)
    # JPEG decoders disagree about the colour between two coarser samples.
    resave(todo, lambda image: image)
    sink = process(tmp_path, flipping(todo), settings)
    assert [key for key, _ in sink.rows] == [
        name for number in range(3) for name in (f"{number:03d}", f"{number:03d}#flip")
    ]
    assert sink.counts[1] == {"flip_copies": 1, "flip_captions": 1}
    resave(todo, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    mirrored = dict(process(tmp_path, todo, settings).rows)
    for key, grid in sink.rows[1::2]:
        # FakeEncoder's cells are the quadrants' mean colours; the resize rounds a little.
        np.testing.assert_allclose(grid, mirrored[key.removesuffix("#flip")], atol=0.2)
        assert np.abs(grid - dict(sink.rows)[key.removesuffix("#flip")]).max() > 2


def test_a_caption_that_tells_left_from_right_is_not_true_of_the_copy(tmp_path: Path) -> None:
    todo = items(tmp_path, 1)
    sink = process(tmp_path, flipping(todo, "a dog on the Left", "a dog", "rightmost dog"))
    assert [key for key, _ in sink.rows] == ["000", "000#flip"]
    assert sink.counts == [
        {"captions": 3, "cut_captions": 0},
        {"flip_copies": 1, "flip_captions": 1},
    ]
    sink = process(tmp_path, flipping(todo, "left of the dog", "..."))
    assert [key for key, _ in sink.rows] == ["000", "000"]
    assert sink.rows[0][1] is Reason.INVALID_CAPTION


def test_what_has_no_record_has_no_copy(tmp_path: Path) -> None:
    todo = flipping(items(tmp_path, 4))
    Path(todo[1]["source"]).write_bytes(b"no image")
    todo[2] = {**todo[2], "captions": [[1, "..."]]}
    sink = process(tmp_path, todo)
    assert [key for key, _ in sink.rows] == [
        *("000", "000#flip", "001", "002", "002", "003", "003#flip")
    ]


def test_several_batches_at_once_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = items(tmp_path, 11)
    expected = process(tmp_path, todo).rows
    monkeypatch.setattr(FakeEncoder, "batch_size", 2)
    monkeypatch.setattr(FakeEncoder, "concurrency", 3)
    (tmp_path / "log").unlink()
    got = process(tmp_path, todo).rows
    assert [key for key, _ in got] == [key for key, _ in expected]
    # The last ones share what is left, so that three at work end together.
    sizes = (tmp_path / "log").read_text().split()
    assert sorted(sizes) == ["1", "1", "1", "2", "2", "2", "2"]
    for (_, grid), (_, wanted) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(grid, wanted)


def test_mirror_images_count_when_the_last_batches_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEncoder, "batch_size", 4)
    monkeypatch.setattr(FakeEncoder, "concurrency", 2)
    process(tmp_path, [{**one, features.FLIP: True} for one in items(tmp_path, 6)])
    # Twelve images: 4, 4, half of the 4 that are left, half of 2, and the last.
    sizes = (tmp_path / "log").read_text().split()
    assert sorted(sizes) == ["1", "1", "2", "4", "4"]


def test_every_reading_thread_reads_however_small_a_batch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latency of a bucket is hidden by more images at once than a batch has."""
    together = threading.Barrier(6)
    read = features.read_item

    def wait_for_the_others(one: Item) -> bytes:
        together.wait(60)
        return read(one)

    monkeypatch.setattr(features, "read_item", wait_for_the_others)
    monkeypatch.setattr(FakeEncoder, "batch_size", 2)
    sink = process(tmp_path, items(tmp_path, 6), replace(SETTINGS, read_threads=6))
    assert len(sink.rows) == 6


def test_compressed_grids_are_the_same_grids() -> None:
    grid = np.maximum(np.random.default_rng(0).normal(size=(49, 64)), 0).astype(np.float16)
    record = records.Record(1, "k", grid, ("a",), ((4,),))
    payloads = {name: records.serialise(record, name) for name in records.COMPRESSIONS}
    assert len(payloads["zlib"]) < 0.8 * len(payloads["none"])
    for name, payload in payloads.items():
        parsed = records.parse(tf.constant([payload, payload]), grid.shape, name)
        np.testing.assert_array_equal(parsed["grid"].numpy(), [grid, grid])


def verdicts(data: bytes) -> tuple[str, str]:
    """What Pillow alone says of bytes, and what this stage says."""
    said = []
    for judge in (image_bytes.canonicalise, judge_here):
        try:
            judge(data)
            said.append("passes")
        except ItemFailure as failure:
            said.append(str(failure.reason))
    return said[0], said[1]


def judge_here(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        features._load({"source": file.name}, shared_preparer(64, SQUASH))


def tensorflow_alone_refuses(data: bytes) -> bool:
    """Whether Pillow reads a JPEG of which TensorFlow cannot decode even the whole."""
    try:
        image_bytes.canonicalise(data)
        tf.io.decode_jpeg(data)
    except ItemFailure:
        return False
    except tf.errors.InvalidArgumentError:
        return True
    return False


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Cut off, cut out, overwritten here or there, zeroed, or with a tail."""
    start, length = generator.randrange(2, len(data)), generator.randrange(1, 5000)
    noise = generator.randbytes(generator.randrange(1, 4))
    header = generator.randrange(2, 700)
    return generator.choice(
        [
            data[:start],
            data[: -generator.randrange(1, 200)],
            data[:start] + data[start + length :],
            data[:start] + noise + data[start + len(noise) :],
            data[:header] + noise + data[header + len(noise) :],
            data[:start] + bytes(length) + data[start + length :],
            data + noise,
        ]
    )


def test_a_jpeg_read_once_is_refused_for_the_reasons_of_one_read_twice() -> None:
    """Bulk captioning lets Pillow read every pixel; what it refuses is refused here, too.

    TensorFlow's decoder gives up on a few files more.
    """
    generator = random.Random(0)
    originals = [jpeg(number, (700, 500)) for number in range(4)]
    if COCO80.is_dir():
        originals += [path.read_bytes() for path in sorted(COCO80.iterdir())[:40]]
    files = [damaged(generator.choice(originals), generator) for _ in range(400)]
    seen = Counter(verdicts(data) for data in files if not tensorflow_alone_refuses(data))
    assert all(pillow == here for pillow, here in seen), seen
    assert {"passes", "truncated", "decode", "not_an_image"} <= {here for _, here in seen}
    assert seen.total() > 390


def test_a_worker_with_another_encoder_than_the_launchers_makes_no_grid(tmp_path: Path) -> None:
    work = Features(partial(FakeEncoder, tmp_path / "log"), Shared(), "other", "", SETTINGS)
    with pytest.raises(InvalidInput) as caught:
        work.setup()
    assert str(caught.value) == (
        f"a worker on {socket.gethostname()} loads encoder weights fake, the launcher loaded "
        "other; put the same weights file at the same path on every machine"
    )


def test_what_tensorflow_alone_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not TensorFlow's traceback of its graph, with the paths of whoever built it."""
    monkeypatch.setattr(features, "canonicalise", lambda *_, **__: Canonical(b"no image", 9, 9))
    with tempfile.NamedTemporaryFile() as file, pytest.raises(ItemFailure) as caught:
        features._load({"source": file.name}, shared_preparer(64, SQUASH))
    assert caught.value.reason == Reason.DECODE
    said = "Pillow reads it, TensorFlow does not: Unknown image file format."
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message
