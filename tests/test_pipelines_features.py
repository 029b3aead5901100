from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from apache_beam.utils.shared import Shared

from model import image_bytes, records
from model.errors import ItemFailure, Reason
from model.image_bytes import Canonical, Limits
from model.vocabulary import Vocabulary
from pipelines import features
from pipelines.features import BATCH, Features
from pipelines.jobs import Item
from tests.preprocess_fixtures import IMAGE_SIZE, FakeEncoder, calls, jpeg


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


def process(tmp_path: Path, todo: list[Item]) -> RecordingSink:
    vocabulary = tmp_path / "vocabulary.json"
    Vocabulary.build({"a": 1, "dog": 1}, 1).save(vocabulary)
    encoder = partial(FakeEncoder, tmp_path / "log")
    work = Features(encoder, Shared(), IMAGE_SIZE, str(vocabulary), max_words=20)
    work.setup()
    sink = RecordingSink()
    work.process(todo, sink)  # type: ignore[arg-type]
    return sink


def test_failures_stand_between_their_neighbours_and_change_none(tmp_path: Path) -> None:
    todo = items(tmp_path, 2 * BATCH + 3)
    clean = dict(process(tmp_path, todo).rows)
    bad = {0, 5, BATCH, 2 * BATCH + 2}
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
    process(tmp_path, items(tmp_path, 2 * BATCH + 3))
    assert (tmp_path / "log").read_text().split() == [str(BATCH), str(BATCH), "3"]


def test_a_batch_of_failures_calls_no_encoder(tmp_path: Path) -> None:
    sink = process(tmp_path, [item(tmp_path / f"none{number}") for number in range(3)])
    assert [outcome for _, outcome in sink.rows] == [Reason.MISSING_FILE] * 3
    assert calls(tmp_path / "log") == 0


def test_what_tensorflow_cannot_decode_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "canonicalise", lambda data: Canonical(b"\xff\xd8" + data, 9, 9))
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

    def canonicalise(data: bytes) -> Canonical:
        seen.append(len(data))
        return image_bytes.canonicalise(data)

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
        Features(make, shared, IMAGE_SIZE, "", 20).setup()
    assert len(made) == 1
