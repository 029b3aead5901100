import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import records
from model.errors import InvalidInput
from model.records import (
    Manifest,
    Record,
    ShardInfo,
    frame,
    parse,
    parse_tokens,
    serialise,
    shard_name,
)

GRID_SHAPE = (3, 5)


def make(image_id: int, captions: tuple[str, ...], tokens: tuple[tuple[int, ...], ...]) -> Record:
    grid = np.random.default_rng(image_id % 97).normal(size=GRID_SHAPE).astype(np.float16)
    return Record(image_id, f"folder/{image_id} ü.jpg", grid, captions, tokens)


RECORDS = (
    make(7, ("a dog", "ein Hund – 犬"), ((5, 6), (1, 2, 3, 4))),
    make(2**62, ("x",), ((9,),)),
    make(0, ("", "a", "b"), ((), (7, 7, 7), (8,))),
)


def test_what_was_serialised_is_parsed() -> None:
    parsed = parse(tf.constant([serialise(record) for record in RECORDS]), GRID_SHAPE)
    for index, record in enumerate(RECORDS):
        assert int(parsed["image_id"][index]) == record.image_id
        assert parsed["key"][index].numpy().decode() == record.key
        np.testing.assert_array_equal(parsed["grid"][index].numpy(), record.grid)
        captions = [caption.decode() for caption in parsed["captions"][index].numpy()]
        assert tuple(captions) == record.captions
        assert tuple(map(tuple, parsed["tokens"][index].to_list())) == record.tokens
    assert parsed["grid"].dtype == tf.float16
    assert parsed["tokens"].dtype == tf.int32


@pytest.mark.parametrize("compression", records.COMPRESSIONS)
def test_tokens_are_parsed_without_the_rest(compression: str) -> None:
    serialised = [serialise(record, compression) for record in RECORDS]
    tokens = parse_tokens(tf.constant(serialised))
    assert tokens.to_list() == [[list(words) for words in record.tokens] for record in RECORDS]
    assert tokens.dtype == tf.int32


def test_the_grid_is_stored_row_major_in_little_endian_float16() -> None:
    grid = np.arange(15, dtype=np.float16).reshape(GRID_SHAPE)
    record = Record(1, "k", np.asfortranarray(grid), (), ())
    example = tf.train.Example.FromString(serialise(record))
    (stored,) = example.features.feature["grid"].bytes_list.value
    assert stored == b"".join(np.float16(value).astype("<f2").tobytes() for value in range(15))


def test_golden_bytes_of_an_example() -> None:
    """Made by tf.train.Example with features in the order of their names."""
    record = Record(1, "k", np.array([[1.5]], np.float16), ("a",), ((4, 300),))
    assert serialise(record).hex() == (
        "0a6e0a110a0863617074696f6e7312050a030a01610a0e0a046772696412060a040a02003e0a110a08696d616765"
        "5f696412051a030a01010a0c0a036b657912050a030a016b0a150a0c746f6b656e5f636f756e747312051a030a01"
        "020a110a06746f6b656e7312071a050a0304ac02"
    )


def test_frames_are_those_of_tensorflows_writer(tmp_path: Path) -> None:
    payloads = [b"", b"x", bytes(range(256)) * 50, *map(serialise, RECORDS)]
    path = str(tmp_path / "file.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    assert b"".join(map(frame, payloads)) == Path(path).read_bytes()
    # CRC-32C of no bytes is 0; masked it is the delta of the format.
    assert frame(b"")[-4:] == (0xA282EAD8).to_bytes(4, "little")


def test_shard_names_sort_as_their_numbers() -> None:
    assert shard_name("train", 3, 64) == "train-00003-of-00064"
    names = [shard_name("val", index, 20_000) for index in range(20_000)]
    assert names == sorted(names)


MANIFEST = Manifest(
    preprocessing={"image_size": 64, "grid_size": 2, "aspect": "squash"},
    fingerprint="f",
    grid_shape=(4, 2048),
    encoder={"name": "resnet50", "weights": "random:0", "digest": "e"},
    vocabulary={"digest": "v", "size": 9, "min_word_count": 5},
    max_words=20,
    splits={
        "train": (ShardInfo("train-0", 3, 15, 99, "s"), ShardInfo("train-1", 4, 20, 9, "t")),
        "val": (),
    },
    ledger={"inputs": 8, "written": 7, "failed": {"empty": 1}, "skipped": 0},
    caption_ledger={"inputs": 35, "written": 35, "failed": {}, "skipped": 0, "cut": 1},
)


def test_a_manifest_survives_its_json(tmp_path: Path) -> None:
    (tmp_path / records.MANIFEST_FILE).write_text(MANIFEST.to_json())
    assert Manifest.load(tmp_path) == MANIFEST
    assert MANIFEST.num_images("train") == 7
    assert MANIFEST.num_images("val") == 0


def test_a_missing_split_names_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"no split 'test' .* one of \['train', 'val'\]"):
        MANIFEST.shards("test")


def test_records_without_a_manifest_were_interrupted(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no manifest.json, expected a finished records directory; run `captionbeam "
        "preprocess` again with the same flags, it goes on where it stopped"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema version 1, expected 2; run preprocess again"),
        ({"preprocessing": {"image_size": 64}}, "not a manifest of captionbeam"),
        ({"surplus": 1}, "not a manifest of captionbeam"),
        ({"splits": []}, "not a manifest of captionbeam"),
        ({"splits": {"train": [{"file": "x"}]}}, "not a manifest of captionbeam"),
        ({"grid_shape": None}, "not a manifest of captionbeam"),
    ],
)
def test_another_manifest_is_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps({**json.loads(MANIFEST.to_json()), **change})
    with pytest.raises(InvalidInput, match=f"here: {message}"):
        Manifest.from_json(text, "here")


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^here: "):
        Manifest.from_json(text, "here")
